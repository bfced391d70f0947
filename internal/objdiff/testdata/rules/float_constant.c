// changed: area
#ifdef NEW
double area(double r) { return r * 3.14159; }
#else
double area(double r) { return r * 3.14; }
#endif
double round_trip(double r) { return r * 2.71; }
