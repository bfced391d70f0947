// Only the text of a string.
// changed: speak
int puts(const char *);
#ifdef NEW
int speak(void) { return puts("good evening"); }
#else
int speak(void) { return puts("good morning"); }
#endif
int bystander(void) { return puts("good night"); }
