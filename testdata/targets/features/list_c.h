/* The features of C: data.c, calls.c, control.c, library.c, threads.c. */
#define FEATURES(F) \
	F(statics) F(static_locals) F(strings) F(string_table) F(jump_table) F(value_table) F(float_constants) F(float_state) \
	F(static_written) F(new_data) F(interior) F(immediates) F(zeroed_array) F(structure) F(data_pointer) F(long_double) F(vector_constant) \
	F(pointer_equal) F(chosen_pointer) F(changed_calls_changed) F(specialised) F(inlined_into_callers) F(varargs) F(struct_by_memory) \
	F(struct_in_registers) F(new_functions) F(recursion) F(tail_call) F(aliased) F(weak_function) F(indirect_function) F(padded) F(many_arguments) \
	F(cold_part) F(cold_only) F(computed_goto) F(stack_allocated) F(jumps_back) F(nested_loops) F(function_name) F(asserted) F(inline_assembler) \
	F(library_data) F(library_environment) F(error_number) F(new_import) F(callback_of_library) F(library_pointer) F(new_library) F(hot_function) F(restarted) \
	F(thread_static) F(thread_global) F(thread_initial_exec) F(thread_elsewhere)
