/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Everything that the sample modules need to know about the kernel, and no more.
 *
 * The layouts below are the interface between a module file and the kernel that
 * loads it, as BTF of a 6.12 kernel shows them (for mips64el DWARF of a 6.1 kernel,
 * as no later one is distributed): struct module (only its size and
 * three of its members matter to a module), struct kernel_param, the array part of
 * a parameter, and the entries of __ksymtab. The functions are those that the
 * kernel exports; what they do stands in the kernel's own documentation.
 */
#ifndef SAMPLES_MODULE_H
#define SAMPLES_MODULE_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char s8;
typedef int s32;
typedef long long s64;
typedef unsigned long size_t;
typedef _Bool bool;

#define NULL ((void *)0)
#define true 1
#define false 0
#define ENOENT 2
#define ENOMEM 12
#define EFAULT 14
#define EINVAL 22
#define ENOTTY 25
#define ENOSPC 28
#define GFP_KERNEL 0xcc0u

#define __section(name) __attribute__((section(name)))
#define __used __attribute__((used))
#define noinline __attribute__((noinline))
#define __init noinline __section(".init.text")
#define __exit noinline __used __section(".exit.text")
#define __initdata __section(".init.data")
#define __initconst __section(".init.rodata")
#define __ro_after_init __section(".data..ro_after_init")

#define ARRAY_SIZE(array) (sizeof(array) / sizeof((array)[0]))
#define __concat2(a, b) a##b
#define __concat(a, b) __concat2(a, b)
#define __text2(x) #x
#define __text(x) __text2(x)

/* What one architecture says differently; KERNEL_H is a header that says it of another kernel. */
#if defined(KERNEL_H)
#include KERNEL_H
#elif defined(__x86_64__)
#define MODULE_SIZE 1280
#define MODULE_EXIT 1200
#define VERMAGIC_TAIL "SMP preempt mod_unload "
#define ENTRY_ALIGN ".balign 4\n"
#define ENTRY_FIELD(symbol) ".long " symbol " - .\n"
#elif defined(__aarch64__)
#define MODULE_SIZE 1280
#define MODULE_EXIT 1192
#define VERMAGIC_TAIL "SMP mod_unload aarch64"
#define ENTRY_ALIGN ".balign 4\n"
#define ENTRY_FIELD(symbol) ".long " symbol " - .\n"
#elif defined(__riscv) && __riscv_xlen == 64
#define MODULE_SIZE 1216
#define MODULE_EXIT 1152
#define VERMAGIC_TAIL "SMP mod_unload riscv"
#define ENTRY_ALIGN ".balign 8\n"
#define ENTRY_FIELD(symbol) ".quad " symbol "\n"
#elif defined(__mips64) && defined(__MIPSEL__)
#define MODULE_SIZE 832
#define MODULE_EXIT 808
#define VERMAGIC_TAIL "SMP mod_unload MIPS64_R2 64BIT "
#define ENTRY_ALIGN ".balign 8\n"
#define ENTRY_FIELD(symbol) ".quad " symbol "\n"
#endif
#define MODULE_NAME 24
#if !defined(MODULE_INIT)
#define MODULE_INIT 312
#endif

/* struct module, with names only for what the module file itself fills in. */
struct module {
	u8 before_name[MODULE_NAME];
	char name[56];
	u8 before_init[MODULE_INIT - MODULE_NAME - 56];
	int (*init)(void);
	u8 before_exit[MODULE_EXIT - MODULE_INIT - 8];
	void (*exit)(void);
	u8 rest[MODULE_SIZE - MODULE_EXIT - 8];
} __attribute__((aligned(64)));
_Static_assert(sizeof(struct module) == MODULE_SIZE, "struct module");

extern struct module __this_module;

/* .modinfo: "tag=value" strings, each ended by a NUL. */
#define MODULE_INFO(tag, value) __MODULE_INFO(tag, __COUNTER__, value)
#define __MODULE_INFO(tag, unique, value)                          \
	static const char __concat(__modinfo_##tag, unique)[]      \
		__used __section(".modinfo")                       \
		__attribute__((aligned(1))) = #tag "=" value

#define MODULE_LICENSE(text) MODULE_INFO(license, text)
#define MODULE_DESCRIPTION(text) MODULE_INFO(description, text)
#define MODULE_PARM_DESC(name, text) MODULE_INFO(parm, #name ":" text)
#define MODULE_IMPORT_NS(space) MODULE_INFO(import_ns, #space)

/* The kernel finds init and exit under these two names. */
#define module_init(function) \
	int init_module(void) __attribute__((alias(#function)))
#define module_exit(function) \
	void cleanup_module(void) __attribute__((alias(#function)))

/* __param: one entry a parameter, in an array that the kernel walks. */
struct kernel_param_ops;

struct kparam_array {
	unsigned int max;
	unsigned int elemsize;
	unsigned int *num;
	const struct kernel_param_ops *ops;
	void *elem;
};

struct kernel_param {
	const char *name;
	struct module *mod;
	const struct kernel_param_ops *ops;
	u16 perm;
	s8 level;
	u8 flags;
	union {
		void *arg;
		const struct kparam_array *arr;
	};
};
_Static_assert(sizeof(struct kernel_param) == 40, "struct kernel_param");

extern const struct kernel_param_ops param_ops_bool, param_ops_charp, param_ops_int,
	param_array_ops;

#define __PARAM(id, type, operations, value, mode)                       \
	static const char __param_str_##id[] = #id;                      \
	static const struct kernel_param __param_##id                    \
		__used __section("__param")                              \
		__attribute__((aligned(8))) = {                          \
		.name = __param_str_##id,                                \
		.mod = &__this_module,                                   \
		.ops = &operations,                                      \
		.perm = mode,                                            \
		.level = -1,                                             \
		.arg = (void *)(value),                                  \
	};                                                               \
	MODULE_INFO(parmtype, #id ":" type)

#define module_param(id, type, mode) \
	__PARAM(id, #type, param_ops_##type, &id, mode)

#define module_param_array(id, type, count, mode)                        \
	static const struct kparam_array __param_arr_##id = {            \
		.max = ARRAY_SIZE(id),                                   \
		.elemsize = sizeof((id)[0]),                             \
		.num = count,                                            \
		.ops = &param_ops_##type,                                \
		.elem = id,                                              \
	};                                                               \
	__PARAM(id, "array of " #type, param_array_ops, &__param_arr_##id, mode)

/*
 * Exports. An entry names the symbol, its name and its namespace: three distances
 * from the field itself where the kernel is built for that, else three pointers.
 * Each entry has a section of its own, so that the linker script can sort them by
 * name; the kernel's search relies on that order.
 */
#define __EXPORT(symbol, table, space)                                          \
	asm(".pushsection \"__ksymtab_strings\", \"aMS\", %progbits, 1\n"       \
	    "__kstrtab_" #symbol ": .asciz \"" #symbol "\"\n"                   \
	    "__kstrtabns_" #symbol ": .asciz \"" space "\"\n"                   \
	    ".popsection\n"                                                     \
	    ".pushsection \"__" table "+" #symbol "\", \"a\"\n" ENTRY_ALIGN     \
	    "__ksymtab_" #symbol ":\n"                                          \
	    ENTRY_FIELD(#symbol)                                                \
	    ENTRY_FIELD("__kstrtab_" #symbol)                                   \
	    ENTRY_FIELD("__kstrtabns_" #symbol)                                 \
	    ".popsection\n")

#define EXPORT_SYMBOL(symbol) __EXPORT(symbol, "_ksymtab", "")
#define EXPORT_SYMBOL_GPL(symbol) __EXPORT(symbol, "_ksymtab_gpl", "")
#define EXPORT_SYMBOL_NS(symbol, space) __EXPORT(symbol, "_ksymtab", #space)

/* printk: a level is SOH and a digit in front of the format. */
#define KERN_ERR "\001" "3"
#define KERN_WARNING "\001" "4"
#define KERN_INFO "\001" "6"
int _printk(const char *format, ...);
#define pr_err(format, ...) _printk(KERN_ERR format, ##__VA_ARGS__)
#define pr_warn(format, ...) _printk(KERN_WARNING format, ##__VA_ARGS__)
#define pr_info(format, ...) _printk(KERN_INFO format, ##__VA_ARGS__)
int snprintf(char *buffer, size_t size, const char *format, ...);

/* Strings and memory. */
void *memcpy(void *to, const void *from, size_t size);
size_t strlen(const char *text);
void *__kmalloc_noprof(size_t size, u32 flags);
void kfree(const void *object);

static inline void *kmalloc(size_t size, u32 flags)
{
	return __kmalloc_noprof(size, flags);
}

/* Lists: a ring of pairs of pointers through a head. */
struct list_head {
	struct list_head *next, *prev;
};

bool __list_add_valid_or_report(struct list_head *entry, struct list_head *prev,
				struct list_head *next);
bool __list_del_entry_valid_or_report(struct list_head *entry);

#define LIST_HEAD(name) struct list_head name = { &(name), &(name) }
#define container_of(pointer, type, member) \
	((type *)((char *)(pointer) - __builtin_offsetof(type, member)))

static inline void list_add_tail(struct list_head *entry, struct list_head *head)
{
	struct list_head *last = head->prev;

	if (!__list_add_valid_or_report(entry, last, head))
		return;
	entry->next = head;
	entry->prev = last;
	last->next = entry;
	head->prev = entry;
}

static inline void list_del(struct list_head *entry)
{
	if (!__list_del_entry_valid_or_report(entry))
		return;
	entry->next->prev = entry->prev;
	entry->prev->next = entry->next;
	entry->next = entry->prev = NULL;
}

/* A mutex is opaque here: the kernel initialises it and knows its size. */
struct mutex {
	u64 opaque[8];
};
struct lock_class_key {
	u8 opaque[8];
};

#if !defined(__mutex_init)
void __mutex_init(struct mutex *lock, const char *name, struct lock_class_key *key);
#endif
void mutex_lock(struct mutex *lock);
void mutex_unlock(struct mutex *lock);

/*
 * A spinlock is four bytes, zero when free. How much of it a kernel inlines into
 * its modules differs: nothing on x86-64, the unlock of a ticket lock on riscv64
 * (the low half counts who may enter) and of a queued lock on mips64el (the lowest
 * byte says that it is held), both sides of a queued lock on arm64, where only a
 * contended lock calls the kernel.
 */
typedef struct {
	u32 value;
} spinlock_t;

#if defined(__x86_64__)
void _raw_spin_lock(spinlock_t *lock);
void _raw_spin_unlock(spinlock_t *lock);
#define spin_lock(lock) _raw_spin_lock(lock)
#define spin_unlock(lock) _raw_spin_unlock(lock)
#elif defined(__aarch64__)
void queued_spin_lock_slowpath(spinlock_t *lock, u32 value);

static inline void spin_lock(spinlock_t *lock)
{
	u32 seen = 0;

	if (!__atomic_compare_exchange_n(&lock->value, &seen, 1u, false,
					 __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE))
		queued_spin_lock_slowpath(lock, seen);
}

static inline void spin_unlock(spinlock_t *lock)
{
	__atomic_store_n((u8 *)&lock->value, 0, __ATOMIC_RELEASE);
}
#elif defined(__mips__)
void _raw_spin_lock(spinlock_t *lock);
#define spin_lock(lock) _raw_spin_lock(lock)

static inline void spin_unlock(spinlock_t *lock)
{
	__atomic_store_n((u8 *)&lock->value, 0, __ATOMIC_RELEASE);
}
#else
void _raw_spin_lock(spinlock_t *lock);
#define spin_lock(lock) _raw_spin_lock(lock)

static inline void spin_unlock(spinlock_t *lock)
{
	u16 *serving = (u16 *)&lock->value;

	__atomic_store_n(serving, (u16)(*serving + 1), __ATOMIC_RELEASE);
}
#endif

/*
 * Memory of user space. On arm64 the bare copy is what modules call, and the checks around
 * it are inlined; so on mips64el, where it has a calling convention of its own and these
 * modules do not call it. A count is returned of what was not copied.
 */
#define __user
#if defined(__aarch64__)
unsigned long __arch_copy_to_user(void __user *to, const void *from, unsigned long size);
unsigned long __arch_copy_from_user(void *to, const void __user *from, unsigned long size);
#define copy_to_user __arch_copy_to_user
#define copy_from_user __arch_copy_from_user
#else
unsigned long _copy_to_user(void __user *to, const void *from, unsigned long size);
unsigned long _copy_from_user(void *to, const void __user *from, unsigned long size);
#define copy_to_user _copy_to_user
#define copy_from_user _copy_from_user
#endif

/* Devices: the beginning of struct file, operations on it, and misc devices. */
#define _IO(type, number) ((unsigned int)(type) << 8 | (number))
#define MISC_DYNAMIC_MINOR 255

struct inode;

#if defined(__mips__)
struct file {
	u8 path[32];
	struct inode *inode;
	const void *operations;
	u8 lock[16];
	unsigned int f_flags;
	u32 mode;
	u8 more[128];
	void *private_data;
};
#else
struct file {
	u64 count;
	u32 lock;
	u32 mode;
	const void *operations;
	void *mapping;
	void *private_data;
	struct inode *inode;
	unsigned int f_flags;
};
#endif

struct file_operations {
	struct module *owner;
#if !defined(__mips__)
	u32 fop_flags;
#endif
	void *llseek;
	long (*read)(struct file *file, char __user *to, size_t count, long long *place);
	long (*write)(struct file *file, const char __user *from, size_t count, long long *place);
	void *read_iter, *write_iter, *iopoll;
#if defined(__mips__)
	void *iterate;
#endif
	void *iterate_shared, *poll;
	long (*unlocked_ioctl)(struct file *file, unsigned int command, unsigned long argument);
	void *compat_ioctl, *mmap;
#if defined(__mips__)
	unsigned long mmap_supported_flags;
#endif
	int (*open)(struct inode *inode, struct file *file);
	void *flush;
	int (*release)(struct inode *inode, struct file *file);
	void *more[18];
};

struct miscdevice {
	int minor;
	const char *name;
	const struct file_operations *fops;
	struct list_head list;
	void *parent, *this_device, *groups;
	const char *nodename;
	u16 mode;
};

int misc_register(struct miscdevice *device);
void misc_deregister(struct miscdevice *device);

#endif /* SAMPLES_MODULE_H */
