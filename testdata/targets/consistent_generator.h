// A C++20 coroutine that gives numbers for ever; its frame is on the heap, and
// holds the address at which it goes on. FIRST is the first number.
#pragma once

#include <coroutine>
#include <exception>

struct generator {
	struct promise_type {
		long value = 0;
		generator get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
		std::suspend_always initial_suspend() noexcept { return {}; }
		std::suspend_always final_suspend() noexcept { return {}; }
		std::suspend_always yield_value(long v) noexcept {
			value = v;
			return {};
		}
		void return_void() {}
		void unhandled_exception() { std::terminate(); }
	};
	std::coroutine_handle<promise_type> handle;
};

generator counting(long from);
