# SPDX-License-Identifier: GPL-2.0-or-later
"""Drivers that modules register, and what they match (include/linux/mod_devicetable.h)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernels.modelled.api.registration import DeviceIds, member_value, registration
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import StructView, layout, struct, view

MOST_IDS = 4096


struct(
    "device_driver",
    "name:str bus:ptr owner:ptr mod_name:str suppress_bind_attrs:u8 probe_type:u32"
    " of_match_table:ptr acpi_match_table:ptr probe:fn sync_state:fn remove:fn shutdown:fn"
    " suspend:fn resume:fn groups:ptr dev_groups:ptr pm:ptr coredump:fn p:ptr",
)
struct(
    "pci_driver",
    "name:str id_table:ptr probe:fn remove:fn suspend:fn resume:fn shutdown:fn"
    " sriov_configure:fn sriov_set_msix_vec_count:fn sriov_get_vf_total_msix:fn err_handler:ptr"
    " groups:ptr dev_groups:ptr driver:device_driver ...",
)
struct(
    "platform_driver",
    "probe:fn remove:fn shutdown:fn suspend:fn resume:fn driver:device_driver id_table:ptr ...",
)
struct(
    "usb_driver",
    "name:str probe:fn disconnect:fn unlocked_ioctl:fn suspend:fn resume:fn reset_resume:fn"
    " pre_reset:fn post_reset:fn shutdown:fn id_table:ptr ...",
)
struct(
    "i2c_driver",
    "class:u32 probe:fn remove:fn shutdown:fn alert:fn command:fn driver:device_driver"
    " id_table:ptr ...",
)
struct("spi_driver", "id_table:ptr probe:fn remove:fn shutdown:fn driver:device_driver")
struct(
    "virtio_driver",
    "driver:device_driver id_table:ptr feature_table:ptr feature_table_size:u32"
    " feature_table_legacy:ptr feature_table_size_legacy:u32 validate:fn probe:fn scan:fn"
    " remove:fn config_changed:fn freeze:fn restore:fn",
)
struct(
    "hid_driver",
    "name:str id_table:ptr dyn_list:list dyn_lock:u32 match:fn probe:fn remove:fn"
    " report_table:ptr raw_event:fn ...",
)
struct(
    "acpi_driver",
    "name:char[80] class:char[80] ids:ptr flags:u32"
    " ops.add:fn ops.remove:fn ops.notify:fn drv:device_driver",
)
struct(
    "pci_device_id",
    "vendor:u32 device:u32 subvendor:u32 subdevice:u32 class:u32"
    " class_mask:u32 driver_data:u64 override_only:u32",
)
struct(
    "usb_device_id",
    "match_flags:u16 vendor:u16 product:u16 lo:u16 hi:u16 class:u8"
    " subclass:u8 protocol:u8 if_class:u8 if_subclass:u8 if_protocol:u8 if_number:u8 info:u64",
)
struct("virtio_device_id", "device:u32 vendor:u32")
struct("hid_device_id", "bus:u16 group:u16 vendor:u32 product:u32 driver_data:u64")
struct("platform_device_id", "name:char[20] driver_data:u64")
struct("i2c_device_id", "name:char[20] driver_data:u64")
struct("spi_device_id", "name:char[32] driver_data:u64")
struct("acpi_device_id", "id:char[16] driver_data:u64 cls:u32 cls_msk:u32")


def _table(structure: str, end: tuple[str, ...], spell: Callable[[StructView], str]) -> DeviceIds:
    """Return the reader of a table whose last entry has nothing in the members `end`."""

    def read(k: Kernel, address: int) -> Iterator[str]:
        step = layout(structure).size
        for n in range(MOST_IDS):
            found = view(k, structure, address + n * step)
            if not any(member_value(found, member) for member in end):
                return
            yield spell(found)

    return read


def _number(found: StructView, member: str, width: int) -> str:
    value = found.number(member)
    return "*" if value == 0xFFFF_FFFF else f"{value:0{width}x}"


def _pci(found: StructView) -> str:
    text = f"{_number(found, 'vendor', 4)}:{_number(found, 'device', 4)}"
    if found.number("class_mask"):
        text += f" class {found.number('class'):06x}/{found.number('class_mask'):06x}"
    return text


_PCI = _table("pci_device_id", ("vendor", "subvendor", "class_mask"), _pci)
_USB = _table(
    "usb_device_id",
    ("vendor", "class", "if_class", "info"),
    lambda v: f"{_number(v, 'vendor', 4)}:{_number(v, 'product', 4)}",
)
_HID = _table(
    "hid_device_id",
    ("bus",),
    lambda v: f"{v.number('bus'):04x}:{_number(v, 'vendor', 4)}:{_number(v, 'product', 4)}",
)
_VIRTIO = _table("virtio_device_id", ("device",), lambda v: f"{v.number('device')}")


def _names(structure: str, member: str = "name") -> DeviceIds:
    return _table(structure, (member,), lambda v: v.text(member))


registration(
    "pci driver",
    "pci_driver",
    "int __pci_register_driver(struct pci_driver *drv, struct module *owner, const char *mod_name)",
    "void pci_unregister_driver(struct pci_driver *drv)",
    ids=("id_table", _PCI),
)
registration(
    "usb driver",
    "usb_driver",
    "int usb_register_driver(struct usb_driver *drv, struct module *owner, const char *mod_name)",
    "void usb_deregister(struct usb_driver *drv)",
    ids=("id_table", _USB),
)
registration(
    "platform driver",
    "platform_driver",
    (
        "int __platform_driver_register(struct platform_driver *drv, struct module *owner)",
        "int __platform_driver_probe(struct platform_driver *drv, void *probe, struct module *owner)",
    ),
    "void platform_driver_unregister(struct platform_driver *drv)",
    name="driver.name",
    ids=("id_table", _names("platform_device_id")),
)
registration(
    "i2c driver",
    "i2c_driver",
    "int i2c_register_driver(struct module *owner, struct i2c_driver *drv)",
    "void i2c_del_driver(struct i2c_driver *drv)",
    name="driver.name",
    ids=("id_table", _names("i2c_device_id")),
)
registration(
    "spi driver",
    "spi_driver",
    "int __spi_register_driver(struct module *owner, struct spi_driver *drv)",
    name="driver.name",
    ids=("id_table", _names("spi_device_id")),
)
registration(
    "virtio driver",
    "virtio_driver",
    "int __register_virtio_driver(struct virtio_driver *drv, struct module *owner)",
    "void unregister_virtio_driver(struct virtio_driver *drv)",
    name="driver.name",
    ids=("id_table", _VIRTIO),
)
registration(
    "hid driver",
    "hid_driver",
    "int __hid_register_driver(struct hid_driver *drv, struct module *owner, const char *mod_name)",
    "void hid_unregister_driver(struct hid_driver *drv)",
    ids=("id_table", _HID),
)
registration(
    "acpi driver",
    "acpi_driver",
    "int __acpi_bus_register_driver(struct acpi_driver *drv, struct module *owner)",
    "void acpi_bus_unregister_driver(struct acpi_driver *drv)",
    ids=("ids", _names("acpi_device_id", "id")),
)
registration(
    "driver",
    "device_driver",
    "int driver_register(struct device_driver *drv)",
    "void driver_unregister(struct device_driver *drv)",
)
