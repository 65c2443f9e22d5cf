/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Functions that hand their variable arguments on; see test_va_list.py. */

typedef __builtin_va_list va_list;

struct va_format {
	const char *fmt;
	va_list *va;
};

static int outer(int (*f)(char *, long, const char *, ...), const long *fixed, ...);

/* Calls f(fixed..., list): the arguments after the first `skip`, the list itself or a copy. */
long relay(void *f, const long *fixed, int count, int skip, int copy, ...)
{
	va_list ap, other;
	long result;

	__builtin_va_start(ap, copy);
	while (skip-- > 0)
		(void)__builtin_va_arg(ap, long);
	__builtin_va_copy(other, ap);
	if (count == 1)
		result = copy ? ((int (*)(long, va_list))f)(fixed[0], other)
			      : ((int (*)(long, va_list))f)(fixed[0], ap);
	else if (count == 2)
		result = copy ? ((long (*)(long, long, va_list))f)(fixed[0], fixed[1], other)
			      : ((long (*)(long, long, va_list))f)(fixed[0], fixed[1], ap);
	else
		result = copy ? ((int (*)(long, long, long, va_list))f)(fixed[0], fixed[1], fixed[2],
									other)
			      : ((int (*)(long, long, long, va_list))f)(fixed[0], fixed[1], fixed[2],
									ap);
	__builtin_va_end(other);
	__builtin_va_end(ap);
	return result;
}

/* Calls f(fixed..., &vf, &vf, 77), where vf is `fmt` and the arguments after the first `skip`. */
long wrap(void *f, const long *fixed, int count, int skip, const char *fmt, ...)
{
	struct va_format vf;
	va_list ap;
	long result;

	__builtin_va_start(ap, fmt);
	while (skip-- > 0)
		(void)__builtin_va_arg(ap, long);
	vf.fmt = fmt;
	vf.va = &ap;
	if (count == 1)
		result = ((int (*)(long, ...))f)(fixed[0], &vf, &vf, 77);
	else if (count == 2)
		result = ((long (*)(long, long, ...))f)(fixed[0], fixed[1], &vf, &vf, 77);
	else
		result = ((int (*)(long, long, long, ...))f)(fixed[0], fixed[1], fixed[2], &vf, &vf, 77);
	__builtin_va_end(ap);
	return result;
}

/* Calls f(fixed[0..2], &vf, 77), where vf is fixed[3] and the arguments 5, { fmt, ... }, 6. */
long nested(void *f, const long *fixed, const char *fmt, ...)
{
	struct va_format vf;
	va_list ap;
	int result;

	__builtin_va_start(ap, fmt);
	vf.fmt = fmt;
	vf.va = &ap;
	result = outer(f, fixed, 5, &vf, 6);
	__builtin_va_end(ap);
	return result;
}

static __attribute__((noinline)) int outer(int (*f)(char *, long, const char *, ...),
					   const long *fixed, ...)
{
	struct va_format vf;
	va_list ap;
	int result;

	__builtin_va_start(ap, fixed);
	vf.fmt = (const char *)fixed[3];
	vf.va = &ap;
	result = f((char *)fixed[0], fixed[1], (const char *)fixed[2], &vf, 77);
	__builtin_va_end(ap);
	return result;
}
