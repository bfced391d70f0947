/* The features of C++: objects.cc, exceptions.cc, templates.cc. */
#define FEATURES(F) \
	F(guarded) F(guarded_inline) F(anonymous) F(file_object) F(virtual_call) F(virtual_changed) F(type_information) F(cast) F(new_class) \
	F(destroyed) F(members) F(member_pointer) F(lambda) F(overloaded) F(thread_object) F(thread_plain) F(array_delete) F(pure_interface) F(several_bases) F(virtual_base) \
	F(thrown_new_caught_old) F(thrown_old_caught_new) F(thrown_and_caught) F(thrown_from_cold) F(rethrown) F(cleaned_up) F(caught_by_base) F(not_thrown) F(function_try) \
	F(template_same) F(template_changed) F(inline_changed) F(inline_static) F(unique_object) F(new_instance) F(standard_string) F(standard_vector) F(standard_map) F(standard_sort) \
	F(variadic) F(constant_expression) F(typed_enum)
