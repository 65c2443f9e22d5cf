# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine's firmware and buses would tell: this one has no devices and no firmware files.

So every search ends without a match, every request for a file with -ENOENT, and drivers wait
for devices that do not come (drivers/acpi/, drivers/pci/, drivers/base/firmware_loader/).
"""

from __future__ import annotations

from kernels.modelled.api.common import Deferred, errno, nothing, text
from kernels.modelled.api.memory import GFP_ZERO, kmalloc
from kernels.modelled.api.sched import defer
from kernels.modelled.kernel import Kernel
from kernels.modelled.structs import size_of
from kernels.modelled.table import Arguments, data, function

AE_NOT_FOUND = 5
KEY = size_of("key")

data("acpi_disabled", 4)  # there is ACPI, with empty tables
data("acpi_gbl_FADT", size_of("acpi_table_fadt"))
data("efi", size_of("efi"))
data("acpi_root_dir", 8)

nothing(
    "const struct dmi_system_id *dmi_first_match(const struct dmi_system_id *list)",
    "int dmi_check_system(const struct dmi_system_id *list)",
    "const char *dmi_get_system_info(int field)",
    "bool dmi_match(enum dmi_field f, const char *str)",
    "int dmi_walk(void *decode, void *private_data)",
    "int register_acpi_bus_type(struct acpi_bus_type *type)",
    "int unregister_acpi_bus_type(struct acpi_bus_type *type)",
    "acpi_status acpi_get_devices(const char *hid, void *function, void *context, void **result)",
    "bool acpi_dev_present(const char *hid, const char *uid, s64 hrv)",
    "bool acpi_dev_found(const char *hid)",
    "struct acpi_device *acpi_dev_get_first_match_dev(const char *h, const char *u, s64 hrv)",
    "acpi_status acpi_install_notify_handler(acpi_handle device, u32 type, void *fn, void *c)",
    "acpi_status acpi_remove_notify_handler(acpi_handle device, u32 type, void *handler)",
    "int acpi_bus_register_early_device(int type)",
    "bool acpi_has_method(acpi_handle handle, char *name)",
    "bool is_acpi_device_node(const struct fwnode_handle *fwnode)",
    "struct pci_dev *pci_get_device(unsigned int v, unsigned int d, struct pci_dev *from)",
    "struct pci_dev *pci_get_class(unsigned int class, struct pci_dev *from)",
    "struct pci_dev *pci_get_base_class(unsigned int class, struct pci_dev *from)",
    "struct pci_dev *pci_get_subsys(unsigned v, unsigned d, unsigned sv, unsigned sd, void *from)",
    "struct pci_dev *pci_get_domain_bus_and_slot(int domain, unsigned int bus, unsigned int devfn)",
    "void pci_dev_put(struct pci_dev *dev)",
    "struct pci_dev *pci_dev_get(struct pci_dev *dev)",
    "bool video_firmware_drivers_only(void)",
    "void release_firmware(const struct firmware *fw)",
    "struct device_node *of_find_compatible_node(void *from, const char *type, const char *c)",
    "struct device_node *of_find_node_by_name(struct device_node *from, const char *name)",
    "struct device_node *of_find_node_opts_by_path(const char *path, const char **opts)",
    "struct device_node *of_find_matching_node_and_match(void *from, const void *m, void **match)",
    "void of_node_put(struct device_node *node)",
    "int vga_switcheroo_register_handler(const void *handler,"
    " enum vga_switcheroo_handler_flags_t flags)",
    "void vga_switcheroo_unregister_handler(void)",
    "bool apple_gmux_present(void)",
    "bool cc_platform_has(enum cc_attr attr)",
    "u64 cc_mkdec(u64 val)",
)


@function(
    "acpi_status acpi_get_handle(acpi_handle parent, const char *path, acpi_handle *ret_handle)",
    "acpi_status acpi_get_table(char *signature, u32 instance, void **out_table)",
    "acpi_status acpi_evaluate_object(acpi_handle h, char *path, void *args, void *ret)",
    "acpi_status acpi_evaluate_integer(acpi_handle h, char *path, void *args, u64 *data)",
    "acpi_status acpi_get_parent(acpi_handle object, acpi_handle *out)",
)
def _acpi_not_found(_k: Kernel, *_args: int) -> int:
    return AE_NOT_FOUND


@function(
    "int request_firmware(const struct firmware **fw, const char *name, struct device *device)",
    "int firmware_request_nowarn(const struct firmware **fw, const char *name, struct device *d)",
    "int request_firmware_direct(const struct firmware **fw, const char *name, struct device *d)",
)
def _request_firmware(k: Kernel, firmware: int, name: int, _device: int) -> int:
    k.store(firmware, 0)
    k.print(b"firmware: " + text(k, name) + b" is not there\n", 6)
    return errno("ENOENT")


@function(
    "int request_firmware_nowait(struct module *module, bool uevent, const char *name,"
    " struct device *device, gfp_t gfp, void *context, void *cont)"
)
def _request_firmware_nowait(
    k: Kernel,
    _module: int,
    _uevent: int,
    name: int,
    _device: int,
    _gfp: int,
    context: int,
    cont: int,
) -> int:
    title = text(k, name).decode("utf-8", "replace")
    what = Deferred(f"firmware {title}", lambda k: k.call(cont, 0, context), lambda _k: cont)
    defer(k, cont, what)
    return 0


# Programs and modules that the kernel would have user space run ---------------------------------


@function("int __request_module(bool wait, const char *name, ...)")
def _request_module(k: Kernel, _wait: int, fmt: int, args: Arguments) -> int:
    name = k.format(fmt, args).decode("utf-8", "replace")
    if k.request_module(name):
        return 0
    k.print(f"request_module: no {name} here\n".encode(), 7)
    return errno("ENOENT")


@function(
    "int call_usermodehelper(const char *path, char **argv, char **envp, int wait)",
)
def _call_usermodehelper(k: Kernel, path: int, _argv: int, _envp: int, _wait: int) -> int:
    k.print(b"usermode helper: no " + text(k, path) + b" here\n", 7)
    return errno("ENOENT")


# Keys --------------------------------------------------------------------------------------------


@function(
    "struct key *keyring_alloc(const char *description, uid_t uid, gid_t gid,"
    " const struct cred *cred, key_perm_t perm, unsigned long flags, void *link, void *dest)"
)
def _keyring_alloc(k: Kernel, *_args: int) -> int:
    found = kmalloc(k, KEY(k), GFP_ZERO)
    k.store(found, 1, 4)  # its reference count
    return found


@function("void key_put(struct key *key)")
def _key_put(k: Kernel, key: int) -> None:
    if key and k.heap.size(key):
        left = k.word(key, 4) - 1
        k.store(key, left, 4)
        if not left:
            k.heap.free(key)


nothing(
    "int x509_load_certificate_list(const u8 *list, unsigned long size, const struct key *ring)",
    "int register_key_type(struct key_type *ktype)",
    "void unregister_key_type(struct key_type *ktype)",
    "void drop_reasons_register_subsys(enum skb_drop_reason_subsys subsys, const void *list)",
    "void drop_reasons_unregister_subsys(enum skb_drop_reason_subsys subsys)",
)
