// A patch of C::clone of shape.h, which has a covariant result: the copies' own
// results are larger by 5000. It makes objects, so it refers to C's vtable and
// typeinfo in the target; they must be exported, or found by hotpatch.
#include "hotpatch.h"
#include "shape.h"

HOTPATCH_NAME("shape-clone", 1)

C *C::clone() {
	C *copy = new C(*this);
	copy->c += 5000;
	return copy;
}
