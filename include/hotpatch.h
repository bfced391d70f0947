/*
 * hotpatch.h: what a patch library says of itself.
 *
 * Any shared object is a patch library: every function that it exports replaces
 * the function of the same (mangled) name in the target. The macros below say
 * more. Each one is written once, at file scope, on a line of its own, without a
 * semicolon:
 *
 *     #include "hotpatch.h"
 *
 *     HOTPATCH_NAME("fix-login", 2)
 *     HOTPATCH_DESCRIPTION("check the length before the copy")
 *     HOTPATCH_CVE("CVE-2026-1234")
 *
 *     HOTPATCH_REF_VAR(int, failures, "login.c:failures")
 *     HOTPATCH_REF_FUNC(int, old_check, (const char *name, unsigned len), "login.c:check")
 *
 *     static int new_login(const char *name, unsigned len)
 *     {
 *         if (len > 64) {
 *             ++*failures;
 *             return -1;
 *         }
 *         return old_check(name, len);
 *     }
 *     HOTPATCH_REPLACE(new_login, "login.c:login")
 *
 *     cc -shared -fPIC -O2 -Iinclude -o fix-login.so fix-login.c
 *
 * The macros make data and no code, in the section .hotpatch.records, which
 * docs/patch-format.md describes byte by byte. They work in C89 to C23 and in
 * C++98 to C++20, with gcc from 8 and clang from 11, with -flto and with
 * -Wl,--gc-sections. (Before gcc 11 and clang 13 a compiler cannot tell the
 * linker to keep a section: do not use -Wl,--gc-sections there.)
 *
 * Strings must be string literals. A symbol of the target is written as
 *
 *     name               the only one of this name in the whole target
 *     module!name        in this module: "libfoo.so.1!parse"
 *     file.c:name        a static one of this source file
 *     module!file.c:name both
 *
 * where the name is the mangled name or, for C++, the demangled one, with or
 * without its parameters: "Parser::parse(char const*, int)" or "Parser::parse".
 * More than one match is refused, never guessed.
 *
 * Two macros of the same kind must not be on the same line.
 */
#ifndef HOTPATCH_H
#define HOTPATCH_H

#if !defined(__x86_64__) || defined(__ILP32__) || !defined(__ELF__)
#error "hotpatch.h: only 64-bit x86-64 ELF targets are supported"
#endif

/*
 * HOTPATCH_NAME(name, version): the patch's name and its version, an integer
 * from 1 up. Of two patches for the same function, the one with the higher
 * version wins; the same or a lower one is refused. Without this macro the name
 * is the file's name without ".so", and the version is 1.
 */
#define HOTPATCH_NAME(name, version) \
	HOTPATCH_NOTE_(patch_name, 1, 0, version, name)

/* HOTPATCH_DESCRIPTION(text): one line that says what the patch does. */
#define HOTPATCH_DESCRIPTION(text) \
	HOTPATCH_NOTE_(description, 2, 0, 0, text)

/* HOTPATCH_CVE(id): a vulnerability that the patch fixes. Any number of them. */
#define HOTPATCH_CVE(id) \
	HOTPATCH_NOTE_(cve, 3, 0, 0, id)

/*
 * HOTPATCH_REPLACE(function, old): function, defined in this patch, replaces
 * the target's function old. It may be static; if it is global, it does not
 * replace the function of its own name any more. Any number of them.
 *
 * A member function cannot be named here. Define it as a member of the same
 * class: then it replaces the old one by its own name. Or write a function that
 * takes the object as its first parameter.
 */
#define HOTPATCH_REPLACE(function, old) \
	HOTPATCH_RECORD_(replace, 4, 0, 0, void (*h_pointer)(void), HOTPATCH_FUNCTION_(function), old)

/*
 * HOTPATCH_REPLACE_AT(function, build_id, address): the same for a function
 * without a usable name: it is at this address of the file (as nm and objdump
 * show it) with this build-id, in hexadecimal: "9f86d081884c7d65".
 */
#define HOTPATCH_REPLACE_AT(function, build_id, address) \
	HOTPATCH_RECORD_(replace_at, 5, 0, address, void (*h_pointer)(void), HOTPATCH_FUNCTION_(function), build_id)

/*
 * HOTPATCH_BASE(build_id): a build that the patch was made for, in hexadecimal.
 * If there is one, then every module in which the patch replaces a function
 * must be one of the builds named. Any number of them.
 *
 * HOTPATCH_BASE_MODULE(module, build_id): the same for one module only, named
 * as in "module!name".
 */
#define HOTPATCH_BASE(build_id) \
	HOTPATCH_NOTE_(base, 6, 0, 0, build_id "\0")
#define HOTPATCH_BASE_MODULE(module, build_id) \
	HOTPATCH_NOTE_(base_module, 6, 0, 0, build_id "\0" module)

/*
 * References to functions and variables of the target that the dynamic linker
 * cannot see, such as static ones. Each macro defines a static pointer, and
 * hotpatch fills it after the library was loaded and before anything of it
 * runs, its constructors included. If the symbol is not found or not the only one
 * of its kind, the patch is not applied. Use the pointer in this file only.
 *
 * HOTPATCH_REF_FUNC(result, pointer, parameters, symbol): a function.
 *
 *     HOTPATCH_REF_FUNC(int, old_helper, (int a, int b), "file.c:helper")
 *     ... old_helper(1, 2) ...
 *
 * HOTPATCH_REF_VAR(type, pointer, symbol): a variable. Of an array, give the
 * type of an element; types that need brackets need a typedef.
 *
 *     HOTPATCH_REF_VAR(int, counter, "file.c:counter")
 *     ... ++*counter ...
 *     HOTPATCH_REF_VAR(struct user, users, "users")
 *     ... users[3].name ...
 *
 * HOTPATCH_REF(type, pointer, symbol): either one; a function needs a typedef
 * of a function type.
 *
 * HOTPATCH_BIND(pointer, symbol): the same for a pointer variable that is
 * defined elsewhere in this file and has static storage.
 */
#define HOTPATCH_REF_FUNC(result, pointer, parameters, symbol) \
	static result(*pointer) parameters __attribute__((used)); \
	HOTPATCH_REF_(pointer, 1, symbol)
#define HOTPATCH_REF_VAR(type, pointer, symbol) \
	static type *pointer __attribute__((used)); \
	HOTPATCH_REF_(pointer, 2, symbol)
#define HOTPATCH_REF(type, pointer, symbol) \
	static type *pointer __attribute__((used)); \
	HOTPATCH_REF_(pointer, 0, symbol)
#define HOTPATCH_BIND(pointer, symbol) \
	HOTPATCH_REF_(pointer, 0, symbol)

/*
 * Hooks: functions of this patch of type int (void), called in the target by a
 * thread of hotpatch's own, while the target's threads run. Any number of each,
 * called in the order of the source. A hook before that returns
 * anything but 0 cancels: nothing has changed then. What a hook after returns
 * is reported.
 */
#define HOTPATCH_BEFORE_APPLY(function) \
	HOTPATCH_RECORD_(before_apply, 8, 1, 0, int (*h_pointer)(void), function, "")
#define HOTPATCH_AFTER_APPLY(function) \
	HOTPATCH_RECORD_(after_apply, 8, 2, 0, int (*h_pointer)(void), function, "")
#define HOTPATCH_BEFORE_REVERT(function) \
	HOTPATCH_RECORD_(before_revert, 8, 3, 0, int (*h_pointer)(void), function, "")
#define HOTPATCH_AFTER_REVERT(function) \
	HOTPATCH_RECORD_(after_revert, 8, 4, 0, int (*h_pointer)(void), function, "")

/*
 * HOTPATCH_CONSISTENCY_STACK: apply the patch only when no thread runs, or will
 * return into, a function that is replaced (this is what happens if nothing is
 * said; the macro makes it impossible to ask for less).
 *
 * HOTPATCH_CONSISTENCY_ENTRY: it is enough that no thread is inside the bytes
 * that are overwritten. Calls that are going on end in the old code while new
 * ones run the new code: only for patches where old and new code can mix.
 */
#define HOTPATCH_CONSISTENCY_STACK \
	HOTPATCH_NOTE_(consistency, 9, 1, 0, "")
#define HOTPATCH_CONSISTENCY_ENTRY \
	HOTPATCH_NOTE_(consistency, 9, 2, 0, "")

/*
 * HOTPATCH_KEEP(function): function is global, but only a helper: it does not
 * replace the target's function of the same name. (Better make it static.)
 */
#define HOTPATCH_KEEP(function) \
	HOTPATCH_RECORD_(keep, 10, 0, 0, void (*h_pointer)(void), HOTPATCH_FUNCTION_(function), "")

/*
 * Shadow data: extra fields for objects of the program, whose layout a patch
 * must not change. Define HOTPATCH_SHADOW before the header is included, in one
 * source file of the patch:
 *
 *     #define HOTPATCH_SHADOW
 *     #include "hotpatch.h"
 *
 *     struct more { unsigned failures; };
 *     HOTPATCH_SHADOW_DATA(struct more, more_of, 1)
 *
 *     ... more_of(session)->failures++ ...     in a new function
 *     ... more_of_drop(session) ...            where the program frees a session
 *
 * HOTPATCH_SHADOW_DATA(type, name, id) defines
 *
 *     type *name(const void *object)        the data of the object, all zero when it is
 *                                           asked for first; NULL only without memory
 *     type *name_peek(const void *object)   the same, or NULL if there is none yet
 *     void name_drop(const void *object)    frees it, if there is any
 *     void name_drop_all(void)              frees that of all objects; for a hook after revert
 *
 * id is a number that tells several such fields of one object apart. Data that is
 * not dropped where the object is freed is met again by the next object at the
 * same address. All may be called by any thread at any time, with two rules: what
 * is dropped is not in use by another thread, and nothing is called from a signal
 * handler. peek takes no lock; the others take one for the time of a search.
 *
 * The data belongs to this patch library. A later version of the patch starts
 * with none.
 */
#define HOTPATCH_SHADOW_DATA(type, name, id) \
	static __attribute__((unused)) type *name(const void *object) \
	{ \
		return (type *)hotpatch_shadow_get_(object, id, sizeof(type)); \
	} \
	static __attribute__((unused)) type *name##_peek(const void *object) \
	{ \
		return (type *)hotpatch_shadow_peek_(object, id); \
	} \
	static __attribute__((unused)) void name##_drop(const void *object) \
	{ \
		hotpatch_shadow_drop_(object, id); \
	} \
	static __attribute__((unused)) void name##_drop_all(void) \
	{ \
		hotpatch_shadow_drop_(0, id); \
	}

#ifdef HOTPATCH_SHADOW
#include <stdlib.h>

/*
 * A hash table of lists. Entries are never freed, only used again, so that peek
 * can walk a list while others change it: an entry is one of the object for
 * whoever finds the object in it before and after it has read the rest.
 */
struct hotpatch_shadow_ {
	struct hotpatch_shadow_ *next;
	const void *object; /* 0: unused */
	unsigned long id;
	void *data;
};
static __attribute__((unused)) struct hotpatch_shadow_ *hotpatch_shadow_table_[1024];
static __attribute__((unused)) int hotpatch_shadow_lock_;

static __attribute__((unused)) struct hotpatch_shadow_ **hotpatch_shadow_list_(const void *object)
{
	unsigned long at = (unsigned long)object / 8 * 0x9e3779b97f4a7c15ul;
	return &hotpatch_shadow_table_[at >> 54];
}

static __attribute__((unused)) void *hotpatch_shadow_peek_(const void *object, unsigned long id)
{
	struct hotpatch_shadow_ *e = __atomic_load_n(hotpatch_shadow_list_(object), __ATOMIC_ACQUIRE);
	for (; e; e = e->next) {
		if (__atomic_load_n(&e->object, __ATOMIC_ACQUIRE) == object && __atomic_load_n(&e->id, __ATOMIC_ACQUIRE) == id) {
			void *data = __atomic_load_n(&e->data, __ATOMIC_ACQUIRE);
			if (__atomic_load_n(&e->object, __ATOMIC_ACQUIRE) == object)
				return data;
		}
	}
	return 0;
}

static __attribute__((unused)) void hotpatch_shadow_take_(void)
{
	while (__atomic_exchange_n(&hotpatch_shadow_lock_, 1, __ATOMIC_ACQUIRE))
		__builtin_ia32_pause();
}

static __attribute__((unused)) void hotpatch_shadow_give_(void)
{
	__atomic_store_n(&hotpatch_shadow_lock_, 0, __ATOMIC_RELEASE);
}

static __attribute__((unused)) void *hotpatch_shadow_get_(const void *object, unsigned long id, unsigned long size)
{
	struct hotpatch_shadow_ **list = hotpatch_shadow_list_(object), *e, *spare;
	void *fresh, *data = hotpatch_shadow_peek_(object, id);
	if (data)
		return data;
	fresh = calloc(1, size);
	spare = (struct hotpatch_shadow_ *)calloc(1, sizeof *spare);
	if (!fresh || !spare) {
		free(fresh);
		free(spare);
		return 0;
	}
	hotpatch_shadow_take_();
	data = hotpatch_shadow_peek_(object, id);
	if (!data) {
		for (e = *list; e && e->object; e = e->next)
			;
		if (!e) {
			e = spare;
			spare = 0;
			e->next = *list;
			__atomic_store_n(list, e, __ATOMIC_RELEASE);
		}
		__atomic_store_n(&e->id, id, __ATOMIC_RELEASE);
		__atomic_store_n(&e->data, fresh, __ATOMIC_RELEASE);
		__atomic_store_n(&e->object, object, __ATOMIC_RELEASE);
		data = fresh;
		fresh = 0;
	}
	hotpatch_shadow_give_();
	free(fresh);
	free(spare);
	return data;
}

/* object 0: all objects. */
static __attribute__((unused)) void hotpatch_shadow_drop_(const void *object, unsigned long id)
{
	struct hotpatch_shadow_ *e;
	void *data;
	unsigned i;
	for (i = 0; i < sizeof hotpatch_shadow_table_ / sizeof hotpatch_shadow_table_[0]; i++) {
		if (object && &hotpatch_shadow_table_[i] != hotpatch_shadow_list_(object))
			continue;
		do {
			data = 0;
			hotpatch_shadow_take_();
			for (e = hotpatch_shadow_table_[i]; e && !data; e = e->next) {
				if (e->object && (!object || e->object == object) && e->id == id) {
					data = e->data;
					__atomic_store_n(&e->object, (const void *)0, __ATOMIC_RELEASE);
				}
			}
			hotpatch_shadow_give_();
			free(data);
		} while (data);
	}
}
#endif

/*
 * What follows is how the macros are made. 0x31525048 is "HPR1".
 */
#define HOTPATCH_RECORD_(tag, type, kind, value, declaration, pointer, text) \
	static struct { \
		unsigned int h_magic, h_size, h_type, h_kind; \
		unsigned long h_value; \
		declaration; \
		char h_text[(sizeof(text) + 7) / 8 * 8]; \
	} HOTPATCH_JOIN_(hotpatch_##tag##_, __LINE__) HOTPATCH_ATTRIBUTES_ = { \
		0x31525048, 32 + (sizeof(text) + 7) / 8 * 8, type, kind, value, pointer, text};
#define HOTPATCH_NOTE_(tag, type, kind, value, text) \
	HOTPATCH_RECORD_(tag, type, kind, value, void (*h_pointer)(void), 0, text)
#define HOTPATCH_REF_(slot, kind, symbol) \
	HOTPATCH_RECORD_(ref_##slot, 7, kind, 0, void *h_pointer, HOTPATCH_OBJECT_(slot), symbol)

#define HOTPATCH_JOIN_(a, b) HOTPATCH_JOIN2_(a, b)
#define HOTPATCH_JOIN2_(a, b) a##b

#ifdef __cplusplus
#define HOTPATCH_FUNCTION_(function) reinterpret_cast<void (*)(void)>(function)
#define HOTPATCH_OBJECT_(slot) (&reinterpret_cast<char &>(slot))
#else
#define HOTPATCH_FUNCTION_(function) (void (*)(void))(function)
#define HOTPATCH_OBJECT_(slot) (void *)&(slot)
#endif

#if defined(__has_attribute)
#if __has_attribute(retain)
#define HOTPATCH_RETAIN_ , retain
#endif
#endif
#ifndef HOTPATCH_RETAIN_
#define HOTPATCH_RETAIN_
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define HOTPATCH_IN_ORDER_ , no_reorder
#else
#define HOTPATCH_IN_ORDER_
#endif
#define HOTPATCH_ATTRIBUTES_ \
	__attribute__((section(".hotpatch.records"), aligned(8), used HOTPATCH_RETAIN_ HOTPATCH_IN_ORDER_))

#endif
