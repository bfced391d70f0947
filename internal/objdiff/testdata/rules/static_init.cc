// A variable with a constructor has another initial value.
// refused: changed-constructor
#include <string>
#ifdef NEW
static std::string motto = "buy three or four, whatever you can carry";
#else
static std::string motto = "buy two";
#endif
const std::string &get() { return motto; }
