// The functions of the consistent target that are replaced together: version
// SET_VERSION. Calls within the set go by the names call_*, through the target's
// entries: whatever stands there at that moment is called.

extern "C" {
#define IN_SET __attribute__((noinline, noclone))

IN_SET long inner1(operation *o, long x) {
	o->versions |= 1u << SET_VERSION;
	linger(o);
	return x + 1;
}

IN_SET long inner2(operation *o, long x) {
	o->versions |= 1u << SET_VERSION;
	linger(o);
	throw x + 2;
}

IN_SET long inner3(operation *o, long x) {
	o->versions |= 1u << SET_VERSION;
	linger(o);
	leap(o, x + 3);
}

IN_SET long inner4(operation *o, long x) {
	o->versions |= 1u << SET_VERSION;
	if (x <= 0) {
		linger(o);
		return 4;
	}
	return cross(o, x - 1) + 1;
}

IN_SET void outer(operation *o, int kind) {
	o->versions |= 1u << SET_VERSION;
	switch (kind) {
	case deep:
		o->wrong += descend(o, 100, o->depth) != 101 + o->depth;
		break;
	case throws:
		try {
			through(o, 200);
			o->wrong++;
		} catch (long thrown) {
			// Inside the handler the exception is still in flight.
			o->wrong += thrown != 202 || call_inner1(o, 5) != 6;
		}
		break;
	case jumps:
		switch (setjmp(o->env)) {
		case 0:
			call_inner3(o, 300);
			o->wrong++;
			break;
		case 303:
			break;
		default:
			o->wrong++;
		}
		break;
	case crosses:
		o->wrong += call_inner4(o, 8) != 4 + 2 * 8;
		break;
	case leaf:
		o->wrong += without_cfi(o, 400, call_inner1) != 401;
		break;
	}
	linger(o);
	o->wrong += call_inner1(o, 500) != 501;
	o->versions |= 1u << SET_VERSION;
}
}
