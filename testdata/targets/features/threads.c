/* Thread-local variables. */
#ifdef FIXED
#define IF_FIXED(x) x
#else
#define IF_FIXED(x)
#endif

static __thread long own = 5;
static __thread long own_zero;
static __thread int own_array[4] = {1, 2, 3, 4};
long thread_static(long x)
{
	own += x;
	own_zero ^= x;
	own_array[x & 3]++;
	return own + own_zero * 3 + own_array[(x + 1) & 3] IF_FIXED(+ 1000);
}

__thread long global_own = 7;
__thread long global_zero;
long thread_global(long x) { global_own += x; global_zero += 2; return global_own * 2 + global_zero + *&own IF_FIXED(- 5000); }

__attribute__((tls_model("initial-exec"))) __thread long early = 9;
static __attribute__((tls_model("initial-exec"))) __thread long early_static = 11;
long thread_initial_exec(long x) { early += x; early_static -= x; return early * 3 + early_static IF_FIXED(+ 70000); }

extern __thread long elsewhere;
long thread_elsewhere(long x) { elsewhere += x; return elsewhere IF_FIXED(* 4 + 1); }
