# SPDX-License-Identifier: GPL-2.0-or-later
"""Registering with the kernel's subsystems: accepted, recorded, and recorded again when undone.

Nobody uses here what a module registers, but a person may, so an entry only says which
structure comes in which argument, and which of its members are of interest. Where the
subsystem fills in a member that inlined code reads, the entry does so too.

    registration(
        "pci driver", "pci_driver",
        "int __pci_register_driver(struct pci_driver *drv, struct module *owner, const char *name)",
        "void pci_unregister_driver(struct pci_driver *drv)",
    )
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from allocator.types import Hex
from kernels.modelled.api.common import empty_list, stop
from kernels.modelled.kernel import Kernel
from kernels.modelled.modules import BASE, STATES
from kernels.modelled.prototypes import parse
from kernels.modelled.structs import View, layout, struct, view
from kernels.modelled.table import data, function
from kernels.registry import Field
from loader.loaded import State

Ids = Callable[[Kernel, int], Iterator[str]]
MOST_IDS = 4096


def enter(
    k: Kernel,
    kind: str,
    structure: str,
    address: int,
    *,
    name: str = "name",
    fields: tuple[str, ...] = (),
    ids: tuple[str, Ids] | None = None,
) -> None:
    """Record the structure at `address`: its name, members of interest, ids, and callbacks."""
    found = view(k, structure, address)
    values: dict[str, Field] = {
        member.rpartition(".")[2]: _value(found, member) for member in fields
    }
    if ids is not None and (table := found.number(ids[0])):
        values["ids"] = tuple(ids[1](k, table))
    title = found.text(name) if name in found.layout.members else ""
    k.register(kind, address, title, fields=values, callbacks=found.functions())


def _text(k: Kernel, address: int) -> str:
    return k.string(address).decode("utf-8", "backslashreplace")


def _value(found: View, member: str) -> Field:
    found_as = found.layout.members[member]
    if found_as.type == "str" or found_as.type.startswith("char"):
        return found.text(member)
    number = found.number(member)
    return Hex(number) if found_as.size > 4 else number


def registration(
    kind: str,
    structure: str,
    register: str | tuple[str, ...],
    unregister: str | tuple[str, ...] = (),
    *,
    name: str = "name",
    fields: tuple[str, ...] = (),
    ids: tuple[str, Ids] | None = None,
) -> None:
    """Declare the functions that register and unregister one kind of structure.

    Parameters
    ----------
    kind, name, fields, ids
        As in the record; `name` and `fields` are members, `ids` a member and the reader of
        the table that it points at.
    structure
        The declared structure; the argument that points at it is found by its type.
    register, unregister
        Prototypes. A parameter called `count` says that the structures are an array.
    """

    def each(k: Kernel, text: str, args: tuple[int, ...]) -> Iterator[int]:
        parameters = parse(text).params
        at = next(i for i, p in enumerate(parameters) if f"struct {structure} *" in p.type.text)
        counts = [value for p, value in zip(parameters, args, strict=True) if p.name == "count"]
        step = layout(structure, k.arch.loads.structure_sizes).size if counts else 0
        yield from (args[at] + n * step for n in range(counts[0] if counts else 1))

    def entering(text: str) -> None:
        @function(text)
        def _register(k: Kernel, *args: int) -> int:
            for address in each(k, text, args):
                k.spend()
                enter(k, kind, structure, address, name=name, fields=fields, ids=ids)
            return 0

    def leaving(text: str) -> None:
        @function(text)
        def _unregister(k: Kernel, *args: int) -> int:
            for address in each(k, text, args):
                k.spend()
                k.registry.remove(kind, address)
            return 0

    for text in (register,) if isinstance(register, str) else register:
        entering(text)
    for text in (unregister,) if isinstance(unregister, str) else unregister:
        leaving(text)


# The crypto API (include/linux/crypto.h, include/crypto/) ----------------------------------

struct(
    "cipher_alg",
    "cia_min_keysize:u32 cia_max_keysize:u32 cia_setkey:fn cia_encrypt:fn cia_decrypt:fn",
)
struct(
    "crypto_alg",
    "cra_list:list cra_users:list cra_flags:u32 cra_blocksize:u32 cra_ctxsize:u32"
    " cra_alignmask:u32 cra_priority:i32 cra_refcnt:u32 cra_name:char[128]"
    " cra_driver_name:char[128] cra_type:ptr cra_u.cipher:cipher_alg cra_init:fn cra_exit:fn"
    " cra_destroy:fn cra_module:ptr",
)
# cra_u is a union; a compression algorithm's arm is declared apart.
struct("compress_alg", "coa_compress:fn coa_decompress:fn")
struct("hash_alg_common", "digestsize:u32 statesize:u32 base:crypto_alg")
struct(
    "shash_alg",
    "init:fn update:fn final:fn finup:fn digest:fn export:fn import:fn setkey:fn init_tfm:fn"
    " exit_tfm:fn clone_tfm:fn descsize:u32 halg:hash_alg_common",
)
struct(
    "ahash_alg",
    "init:fn update:fn final:fn finup:fn digest:fn export:fn import:fn setkey:fn init_tfm:fn"
    " exit_tfm:fn clone_tfm:fn reqsize:u32 halg:hash_alg_common",
)
struct(
    "skcipher_alg_common",
    "min_keysize:u32 max_keysize:u32 ivsize:u32 chunksize:u32 statesize:u32 base:crypto_alg",
)
struct(
    "skcipher_alg",
    "setkey:fn encrypt:fn decrypt:fn export:fn import:fn init:fn exit:fn walksize:u32"
    " co:skcipher_alg_common",
)
struct("lskcipher_alg", "setkey:fn encrypt:fn decrypt:fn init:fn exit:fn co:skcipher_alg_common")
struct(
    "aead_alg",
    "setkey:fn setauthsize:fn encrypt:fn decrypt:fn init:fn exit:fn ivsize:u32 maxauthsize:u32"
    " chunksize:u32 base:crypto_alg",
)
struct("rng_alg", "generate:fn seed:fn set_ent:fn seedsize:u32 base:crypto_alg")
struct("scomp_alg", "alloc_ctx:fn free_ctx:fn compress:fn decompress:fn base:crypto_alg")
struct(
    "acomp_alg",
    "compress:fn decompress:fn dst_free:fn init:fn exit:fn reqsize:u32 base:crypto_alg",
)
struct(
    "akcipher_alg",
    "sign:fn verify:fn encrypt:fn decrypt:fn set_pub_key:fn set_priv_key:fn max_size:fn init:fn"
    " exit:fn base:crypto_alg",
)
struct(
    "kpp_alg",
    "set_secret:fn generate_public_key:fn compute_shared_secret:fn max_size:fn init:fn exit:fn"
    " base:crypto_alg",
)
struct(
    "crypto_template",
    "list:list instances.first:ptr module:ptr create:fn name:char[128]",
)

COMMON = ("cra_driver_name", "cra_priority", "cra_blocksize")
# Kind -> where its crypto_alg is, and what else is of interest.
ALGORITHMS = {
    "shash": ("halg.base", ("halg.digestsize", "descsize")),
    "ahash": ("halg.base", ("halg.digestsize",)),
    "skcipher": ("co.base", ("co.min_keysize", "co.max_keysize", "co.ivsize")),
    "lskcipher": ("co.base", ("co.min_keysize", "co.max_keysize", "co.ivsize")),
    "aead": ("base", ("ivsize", "maxauthsize")),
    "rng": ("base", ("seedsize",)),
    "scomp": ("base", ()),
    "acomp": ("base", ()),
    "akcipher": ("base", ()),
    "kpp": ("base", ()),
}

for _kind, (_base, _fields) in ALGORITHMS.items():
    _many = f"{_kind}es" if _kind.endswith("h") else f"{_kind}s"
    _forms = [f"{_kind}(struct {_kind}_alg *alg)"]
    if _kind not in ("akcipher", "kpp"):
        _forms.append(f"{_many}(struct {_kind}_alg *algs, int count)")
    registration(
        _kind,
        f"{_kind}_alg",
        tuple(f"int crypto_register_{form}" for form in _forms),
        tuple(f"void crypto_unregister_{form}" for form in _forms),
        name=f"{_base}.cra_name",
        fields=(*(f"{_base}.{field}" for field in COMMON), *_fields),
    )

registration(
    "crypto template",
    "crypto_template",
    "int crypto_register_template(struct crypto_template *tmpl)",
    "void crypto_unregister_template(struct crypto_template *tmpl)",
)

ALG_TYPE_MASK = 0xF
# CRYPTO_ALG_TYPE_*: of those that come as a bare struct crypto_alg.
BARE = {1: "cipher", 2: "compress"}


def _bare(k: Kernel, alg: int) -> str:
    return BARE.get(view(k, "crypto_alg", alg).number("cra_flags") & ALG_TYPE_MASK, "algorithm")


def _enter_alg(k: Kernel, alg: int) -> None:
    kind = _bare(k, alg)
    fields = (
        *COMMON,
        *(("cra_u.cipher.cia_min_keysize", "cra_u.cipher.cia_max_keysize") * (kind == "cipher")),
    )
    found = view(k, "crypto_alg", alg)
    callbacks = found.functions()
    if kind == "compress":
        callbacks = {n: a for n, a in callbacks.items() if not n.startswith("cia_")}
        callbacks |= view(k, "compress_alg", found.at("cra_u.cipher")).functions()
    values = {member.rpartition(".")[2]: _value(found, member) for member in fields}
    k.register(kind, alg, found.text("cra_name"), fields=values, callbacks=callbacks)


@function("int crypto_register_alg(struct crypto_alg *alg)")
def _register_alg(k: Kernel, alg: int) -> int:
    _enter_alg(k, alg)
    return 0


@function("void crypto_unregister_alg(struct crypto_alg *alg)")
def _unregister_alg(k: Kernel, alg: int) -> None:
    k.registry.remove(_bare(k, alg), alg)


@function("int crypto_register_algs(struct crypto_alg *algs, int count)")
def _register_algs(k: Kernel, algs: int, count: int) -> int:
    for n in range(count):
        _enter_alg(k, algs + n * layout("crypto_alg").size)
    return 0


@function("void crypto_unregister_algs(struct crypto_alg *algs, int count)")
def _unregister_algs(k: Kernel, algs: int, count: int) -> None:
    for n in range(count):
        k.spend()
        _unregister_alg(k, algs + n * layout("crypto_alg").size)


# Drivers and what they match (include/linux/mod_devicetable.h) -------------------------------

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


def _table(structure: str, end: tuple[str, ...], spell: Callable[[View], str]) -> Ids:
    """Return the reader of a table whose last entry has nothing in the members `end`."""

    def read(k: Kernel, address: int) -> Iterator[str]:
        step = layout(structure).size
        for n in range(MOST_IDS):
            found = view(k, structure, address + n * step)
            if not any(_value(found, member) for member in end):
                return
            yield spell(found)

    return read


def _number(found: View, member: str, width: int) -> str:
    value = found.number(member)
    return "*" if value == 0xFFFF_FFFF else f"{value:0{width}x}"


def _pci(found: View) -> str:
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


def _names(structure: str, member: str = "name") -> Ids:
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

# Buses, classes, nodes (include/linux/device/, fs.h, miscdevice.h) ------------------------------

struct(
    "bus_type",
    "name:str dev_name:str bus_groups:ptr dev_groups:ptr drv_groups:ptr match:fn uevent:fn"
    " probe:fn sync_state:fn remove:fn shutdown:fn irq_get_affinity:fn online:fn offline:fn suspend:fn resume:fn"
    " num_vf:fn dma_configure:fn dma_cleanup:fn pm:ptr driver_override:u8"
    " need_parent_lock:u8",
)
struct(
    "class",
    "name:str class_groups:ptr dev_groups:ptr dev_uevent:fn devnode:fn class_release:fn"
    " dev_release:fn shutdown_pre:fn ns_type:ptr namespace:fn get_ownership:fn pm:ptr",
)
struct(
    "file_operations",
    "owner:ptr fop_flags:u32 llseek:fn read:fn write:fn read_iter:fn write_iter:fn iopoll:fn"
    " iterate_shared:fn poll:fn unlocked_ioctl:fn compat_ioctl:fn mmap:fn open:fn flush:fn"
    " release:fn fsync:fn fasync:fn lock:fn ...",
)
struct(
    "miscdevice",
    "minor:i32 name:str fops:ptr list:list parent:ptr this_device:ptr groups:ptr nodename:str"
    " mode:u16",
)
struct(
    "block_device_operations",
    "submit_bio:fn poll_bio:fn open:fn release:fn ioctl:fn compat_ioctl:fn @80 free_disk:fn ...",
)
MISC_DYNAMIC_MINOR = 255

registration(
    "bus",
    "bus_type",
    "int bus_register(const struct bus_type *bus)",
    "void bus_unregister(const struct bus_type *bus)",
)
registration(
    "class",
    "class",
    "int class_register(const struct class *cls)",
    "void class_unregister(const struct class *cls)",
)


def file_operations(k: Kernel, address: int) -> dict[str, int]:
    """Return the callbacks of a struct file_operations."""
    return view(k, "file_operations", address).functions() if address else {}


@function("int misc_register(struct miscdevice *misc)")
def _misc_register(k: Kernel, misc: int) -> int:
    found = view(k, "miscdevice", misc)
    if found.number("minor") == MISC_DYNAMIC_MINOR:
        taken = {record.fields["minor"] for record in k.registry.find("misc device")}
        found.put("minor", next(n for n in range(128, 1 << 20) if n not in taken and n != 255))
    k.register(
        "misc device",
        misc,
        found.text("name"),
        fields={
            "minor": found.number("minor"),
            "node": found.text("nodename") or found.text("name"),
        },
        callbacks=file_operations(k, found.number("fops")),
    )
    return 0


@function("void misc_deregister(struct miscdevice *misc)")
def _misc_deregister(k: Kernel, misc: int) -> None:
    k.registry.remove("misc device", misc)


FIRST_MAJOR = 234  # dynamic majors are given from 254 down to 234, then from 511 down to 384
LAST_MAJOR = 254


def major(k: Kernel, kind: str, wanted: int) -> int:
    """Return the major number of a registration that asks for `wanted`; 0: any that is free."""
    taken = {record.fields.get("major") for record in k.registry.find(kind)}
    free = (n for n in range(LAST_MAJOR, FIRST_MAJOR - 1, -1) if n not in taken)
    return wanted or next(free, 511)


@function(
    "int __register_chrdev(unsigned int major, unsigned int baseminor, unsigned int count,"
    " const char *name, const struct file_operations *fops)"
)
def _register_chrdev(k: Kernel, wanted: int, base: int, count: int, name: int, fops: int) -> int:
    number = major(k, "char device", wanted)
    fields: dict[str, Field] = {"major": number, "minor": base, "count": count}
    callbacks = file_operations(k, fops)
    key = number << 20 | base
    k.register("char device", key, _text(k, name), fields=fields, callbacks=callbacks)
    return 0 if wanted else number


@function(
    "void __unregister_chrdev(unsigned int major, unsigned int baseminor, unsigned int count,"
    " const char *name)"
)
def _unregister_chrdev(k: Kernel, number: int, base: int, _count: int, _name: int) -> None:
    k.registry.remove("char device", number << 20 | base)


@function(
    "int alloc_chrdev_region(dev_t *dev, unsigned baseminor, unsigned count, const char *name)"
)
def _alloc_chrdev_region(k: Kernel, dev: int, base: int, count: int, name: int) -> int:
    number = major(k, "char device", 0)
    key = number << 20 | base
    k.store(dev, key, 4)
    fields: dict[str, Field] = {"major": number, "minor": base, "count": count}
    k.register("char device", key, _text(k, name), fields=fields)
    return 0


@function("int register_chrdev_region(dev_t from, unsigned count, const char *name)")
def _register_chrdev_region(k: Kernel, first: int, count: int, name: int) -> int:
    fields: dict[str, Field] = {
        "major": first >> 20,
        "minor": first & ((1 << 20) - 1),
        "count": count,
    }
    k.register("char device", first, _text(k, name), fields=fields)
    return 0


@function("void unregister_chrdev_region(dev_t from, unsigned count)")
def _unregister_chrdev_region(k: Kernel, first: int, _count: int) -> None:
    k.registry.remove("char device", first)


# struct cdev (fs/char_dev.c) begins with its kobject.
struct("cdev", "kobj:u64[8] owner:ptr ops:ptr list:list dev:u32 count:u32")


@function("void cdev_init(struct cdev *cdev, const struct file_operations *fops)")
def _cdev_init(k: Kernel, cdev: int, fops: int) -> None:
    found = view(k, "cdev", cdev)
    k.memory.write(cdev, bytes(found.layout.size))
    empty_list(k, found.at("list"))
    found.put("ops", fops)


@function("int cdev_add(struct cdev *p, dev_t dev, unsigned count)")
def cdev_add(k: Kernel, cdev: int, first: int, count: int) -> int:
    """Record the devices of a cdev, by the name of the region that their numbers are of."""
    found = view(k, "cdev", cdev)
    found.put("dev", first)
    found.put("count", count)
    number, minor = first >> 20, first & ((1 << 20) - 1)
    regions = (r for r in k.registry.find("char device") if r.fields.get("major") == number)
    fields: dict[str, Field] = {"major": number, "minor": minor, "count": count}
    callbacks = file_operations(k, found.number("ops"))
    name = next((r.name for r in regions), "")
    k.register("char device", cdev, name, fields=fields, callbacks=callbacks)
    return 0


@function("void cdev_del(struct cdev *p)")
def cdev_del(k: Kernel, cdev: int) -> None:
    """Forget the devices of a cdev."""
    k.registry.remove("char device", cdev)


@function("int __register_blkdev(unsigned int major, const char *name, void *probe)")
def _register_blkdev(k: Kernel, wanted: int, name: int, probe: int) -> int:
    number = major(k, "block major", wanted)
    k.register(
        "block major",
        number,
        _text(k, name),
        fields={"major": number},
        callbacks={"probe": probe} if probe else {},
    )
    return 0 if wanted else number


@function("void unregister_blkdev(unsigned int major, const char *name)")
def _unregister_blkdev(k: Kernel, number: int, _name: int) -> None:
    k.registry.remove("block major", number)


# File systems, text search, character sets, networking --------------------------------------

struct(
    "file_system_type",
    "name:str fs_flags:i32 init_fs_context:fn parameters:ptr mount:fn kill_sb:fn owner:ptr ...",
)
struct(
    "ts_ops",
    "name:str init:fn find:fn destroy:fn get_pattern:fn get_pattern_len:fn owner:ptr ...",
)
struct("nls_table", "charset:str alias:str uni2char:fn char2uni:fn ...")
struct(
    "pernet_operations",
    "list:list init:fn pre_exit:fn exit:fn exit_batch:fn exit_batch_rtnl:fn id:ptr size:u64",
)
struct("notifier_block", "notifier_call:fn next:ptr priority:i32")
struct("genl_family", "hdrsize:u32 name:char[16] version:u32 maxattr:u32 ...")
struct("rtnl_link_ops", "list:list kind:str priv_size:u64 alloc:fn setup:fn ...")

registration(
    "filesystem",
    "file_system_type",
    "int register_filesystem(struct file_system_type *fs)",
    "int unregister_filesystem(struct file_system_type *fs)",
)
registration(
    "text search",
    "ts_ops",
    "int textsearch_register(struct ts_ops *ops)",
    "int textsearch_unregister(struct ts_ops *ops)",
)
registration(
    "character set",
    "nls_table",
    "int __register_nls(struct nls_table *nls, struct module *owner)",
    "int unregister_nls(struct nls_table *nls)",
    name="charset",
)
registration(
    "rtnl link",
    "rtnl_link_ops",
    (
        "int rtnl_link_register(struct rtnl_link_ops *ops)",
        "int __rtnl_link_register(struct rtnl_link_ops *ops)",
    ),
    (
        "void rtnl_link_unregister(struct rtnl_link_ops *ops)",
        "void __rtnl_link_unregister(struct rtnl_link_ops *ops)",
    ),
    name="kind",
)

# Notifier chains by the functions that add to them, each with its counterpart.
for _chain in (
    "netdevice_notifier inetaddr_notifier inet6addr_notifier netevent_notifier"
    " switchdev_notifier switchdev_blocking_notifier pm_notifier reboot_notifier oom_notifier"
    " die_notifier keyboard_notifier acpi_notifier module_notifier inetaddr_validator_notifier"
    " inet6addr_validator_notifier"
).split():
    registration(
        _chain.replace("_", " "),
        "notifier_block",
        f"int register_{_chain}(struct notifier_block *nb)",
        f"int unregister_{_chain}(struct notifier_block *nb)",
        fields=("priority",),
    )
registration(
    "fib notifier",
    "notifier_block",
    "int register_fib_notifier(struct net *net, struct notifier_block *nb, void *cb,"
    " struct netlink_ext_ack *extack)",
    "int unregister_fib_notifier(struct net *net, struct notifier_block *nb)",
    fields=("priority",),
)
registration(
    "netlink notifier",
    "notifier_block",
    "int netlink_register_notifier(struct notifier_block *nb)",
    "int netlink_unregister_notifier(struct notifier_block *nb)",
    fields=("priority",),
)

# Modules that hold on to themselves, and static keys ------------------------------------------


data("modules", 16, fill=lambda k: 2 * k.address("modules").to_bytes(8, "little"))


def _of_module(k: Kernel, module: int, member: str) -> int:
    """Return the address of a member of struct module; stop where it is not known."""
    found = k.modules.at(module)
    if found is None or found.this is None:
        stop(k, f"no module's struct module lies at {module:#x}")
    address = found.member(member)
    if address is None:
        built = f"built for {found.this.build}" if found.this.build else "of an unknown build"
        stop(k, f"struct module of {found.name}, {built}: where its '{member}' stands is not known")
    return address


@function("bool try_module_get(struct module *module)")
def _try_module_get(k: Kernel, module: int) -> int:
    if not module:
        return 1
    count = _of_module(k, module, "refcnt")
    if k.word(_of_module(k, module, "state"), 4) == STATES[State.GOING] or not k.word(count, 4):
        return 0
    k.store(count, k.word(count, 4) + 1, 4)
    return 1


@function("void __module_get(struct module *module)")
def _module_get(k: Kernel, module: int) -> None:
    if module:
        count = _of_module(k, module, "refcnt")
        k.store(count, k.word(count, 4) + 1, 4)


@function("void module_put(struct module *module)")
def _module_put(k: Kernel, module: int) -> None:
    if module:
        count = _of_module(k, module, "refcnt")
        before = k.word(count, 4)
        if not before or before >> 31:
            k.print(b"WARNING: module_put() of a module that nobody holds\n", 4)
        else:
            k.store(count, before - 1, 4)


@function("int module_refcount(struct module *mod)")
def _module_refcount(k: Kernel, module: int) -> int:
    return k.word(_of_module(k, module, "refcnt"), 4) - BASE
