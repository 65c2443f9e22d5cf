# SPDX-License-Identifier: GPL-2.0-or-later
"""Drivers that modules register, and what they match (include/linux/mod_devicetable.h)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kernels.modelled.api.registration import DeviceIds, member_value, registration
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import StructView, struct, view

MOST_IDS = 4096


struct(
    "device_driver",
    "name bus owner probe sync_state remove shutdown suspend resume groups coredump p",
)
struct(
    "pci_driver",
    "name id_table probe remove suspend resume shutdown sriov_configure"
    " sriov_set_msix_vec_count sriov_get_vf_total_msix groups driver",
)
struct(
    "platform_driver",
    "probe remove shutdown suspend resume driver id_table",
)
struct(
    "usb_driver",
    "name probe disconnect unlocked_ioctl suspend resume reset_resume"
    " pre_reset post_reset shutdown id_table",
)
struct(
    "i2c_driver",
    "class probe remove shutdown alert command driver id_table",
)
struct("spi_driver", "id_table probe remove shutdown driver")
struct(
    "virtio_driver",
    "driver id_table validate probe scan remove config_changed freeze restore",
)
struct("hid_driver", "name id_table match probe remove raw_event")
struct(
    "acpi_driver",
    "name class ids flags ops.add ops.remove ops.notify drv",
)
struct("pci_device_id", "vendor device subvendor class class_mask driver_data")
struct(
    "usb_device_id",
    "idVendor idProduct bDeviceClass bInterfaceClass driver_info",
)
struct("virtio_device_id", "device vendor")
struct("hid_device_id", "bus group vendor product driver_data")
struct("platform_device_id", "name driver_data")
struct("i2c_device_id", "name driver_data")
struct("spi_device_id", "name driver_data")
struct("acpi_device_id", "id driver_data cls")


def _table(structure: str, end: tuple[str, ...], spell: Callable[[StructView], str]) -> DeviceIds:
    """Return the reader of a table whose last entry has nothing in the members `end`."""

    def read(k: Kernel, address: int) -> Iterator[str]:
        step = k.layouts.size_of(structure)
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
    ("idVendor", "bDeviceClass", "bInterfaceClass", "driver_info"),
    lambda v: f"{_number(v, 'idVendor', 4)}:{_number(v, 'idProduct', 4)}",
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
