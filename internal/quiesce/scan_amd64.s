#include "textflag.h"

// func skipAVX2(p *byte, blocks int, low, reach, selectors, userCode uint64) int
//
// Eight words of a block at once, in two registers each: a word v is of interest if
// v-low < reach without sign, or v&selectors == userCode. AVX2 compares with sign
// only, so the highest bit is turned over on both sides.
TEXT ·skipAVX2(SB), NOSPLIT, $0-56
	MOVQ p+0(FP), SI
	MOVQ blocks+8(FP), CX
	MOVQ $0x8000000000000000, AX
	MOVQ AX, X2
	VPBROADCASTQ X2, Y2
	VPBROADCASTQ low+16(FP), Y0
	VPBROADCASTQ reach+24(FP), Y1
	VPXOR Y2, Y1, Y1
	VPBROADCASTQ selectors+32(FP), Y3
	VPBROADCASTQ userCode+40(FP), Y4
	XORQ AX, AX

block:
	CMPQ AX, CX
	JGE  done
	VMOVDQU (SI), Y5
	VMOVDQU 32(SI), Y6
	VPSUBQ Y0, Y5, Y7
	VPSUBQ Y0, Y6, Y8
	VPXOR Y2, Y7, Y7
	VPXOR Y2, Y8, Y8
	VPCMPGTQ Y7, Y1, Y7
	VPCMPGTQ Y8, Y1, Y8
	VPAND Y3, Y5, Y5
	VPAND Y3, Y6, Y6
	VPCMPEQQ Y4, Y5, Y5
	VPCMPEQQ Y4, Y6, Y6
	VPOR Y7, Y5, Y5
	VPOR Y8, Y6, Y6
	VPOR Y5, Y6, Y5
	VPTEST Y5, Y5
	JNE done
	ADDQ $64, SI
	INCQ AX
	JMP block

done:
	VZEROUPPER
	MOVQ AX, ret+48(FP)
	RET
