// What the files of the calculator target (calc.c, calc_a.c, calc_b.c,
// calc_asm.S) and its patch share.
#pragma once

#define CALC_NOINLINE __attribute__((noinline))

// calc_wait returns its argument: at once while the gate is open, else when it
// opens.
long calc_wait(long x);

// In calc_a.c and calc_b.c: each calls a static function of its own, and both
// of these have the name same_name.
long a_same(long x); // x + 100
long b_same(long x); // x + 200

// In calc_asm.S; what each is about stands there.
long short3(long x);          // x
long short3_next(long x);     // x + 1
long short3_padded(long x);   // x
long short3_int3(long x);     // x
long short1_padded(long x);   // whatever, it is only a ret
long loop_to_5(long x);       // x + (x-1) + ... + 1
long branch_to_2(long x);     // the same
long call_at_9(long x);       // calc_wait(x) + 1
long call_at_5(long x);       // calc_wait(x) + 1
long call_at_3(long x, long (*wait)(long)); // wait(x) + 1
long endbr(long x);           // x + 3
long rip_relative(long x);    // x + 40
long jump_away(long x);       // x + 6
long page_cross(long x);      // x + 5
long mod0(long x);            // x + 0, its address modulo 8 is 0; and so on:
long mod1(long x);
long mod2(long x);
long mod3(long x);
long mod4(long x);
long mod5(long x);
long mod6(long x);
long mod7(long x);
