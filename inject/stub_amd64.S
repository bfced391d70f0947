# The code that hotpatch runs inside a target. `go test . -run TestStubIsCurrent -update`
# assembles it into stub_amd64.go; that test fails when the two differ.
#
# Two rules hold for everything that runs on a borrowed thread:
#   - it changes nothing that it does not restore: no stack, no flags (only mov,
#     lea, jmp, jrcxz and syscall), no memory but hotpatch's own;
#   - it never waits for anyone, so that it finishes when hotpatch is dead.
#
# Entry points come in pairs. A thread stopped inside a system call has not yet
# decided whether that call starts again. Only rip is changed, to label S; the
# kernel then continues at S when nothing is to be restarted, and at S-2 when
# something is, because a restart is "rip -= 2". The two bytes before S are a
# jump to the variant that resumes two bytes earlier, at the syscall
# instruction itself.

	.intel_syntax noprefix
	.text

# ---------------------------------------------------------------------------
# The bootstrap: makes the region. It lives for microseconds in the unused tail
# of a code page, and its slots are part of it (written by the tracer before).
# On entry the registers hold the arguments of mmap; slots hold their old values.

	.set REGION_SIZE, 0x100000
	.set EXEC_SIZE, 0x2000			# code page and root page, r-x

	.globl boot_start, boot_S, boot_slots, boot_end
	.macro BOOT resume
	mov	rbx, rax			# rax as the kernel left it
	mov	eax, 9				# mmap(A, REGION_SIZE, R|X, PRIVATE|ANON|FIXED_NOREPLACE, -1, 0)
	syscall
	lea	rdi, [rax+EXEC_SIZE]		# an error makes this unaligned, and the next call EINVAL
	mov	esi, REGION_SIZE-EXEC_SIZE
	mov	edx, 3				# R|W
	mov	r10d, 0x32			# PRIVATE|ANON|FIXED
	mov	eax, 9
	syscall
	mov	rax, rbx
	mov	rbx, [rip+boot_slots+0]
	mov	rcx, [rip+boot_slots+8]
	mov	r11, [rip+boot_slots+16]
	mov	rdi, [rip+boot_slots+24]
	mov	rsi, [rip+boot_slots+32]
	mov	rdx, [rip+boot_slots+40]
	mov	r10, [rip+boot_slots+48]
	mov	r8, [rip+boot_slots+56]
	mov	r9, [rip+boot_slots+64]
	jmp	[rip+boot_slots+\resume]
	.endm

boot_start:
1:	jmp	boot_restart
	.byte	0xeb, 1b-(.+1)			# S-2
boot_S:	BOOT	72				# rip
boot_restart:
	BOOT	80				# rip-2
	.balign 8
boot_slots:
	.fill	11, 8, 0
boot_end:

# ---------------------------------------------------------------------------
# The code page of the region, at A. The data page D is at A+0x2000; the layout
# of both is described in layout.go.

	.balign 4096
	.globl code_start, clone_S, agent_main, code_end, clone_done
	.set D, code_start+EXEC_SIZE
	.set SAVED_R15, D+0x00
	.set SAVED_R14, D+0x08
	.set SAVED_R13, D+0x10
	.set SAVED_R12, D+0x18
	.set SAVED_RBP, D+0x20
	.set SAVED_RBX, D+0x28
	.set SAVED_R11, D+0x30
	.set SAVED_R10, D+0x38
	.set SAVED_R9, D+0x40
	.set SAVED_R8, D+0x48
	.set SAVED_RAX, D+0x50
	.set SAVED_RCX, D+0x58
	.set SAVED_RDX, D+0x60
	.set SAVED_RSI, D+0x68
	.set SAVED_RDI, D+0x70
	.set SAVED_RIP, D+0x78
	.set RIP_RESTART, D+0x80		# rip-2
	.set RIP_NOHAND, D+0x88			# rip if the call restarts only without a handler, else 0
	.set MASK_BLOCK, D+0x90			# signals blocked on the borrowed thread
	.set MASK_SAVED, D+0x98
	.set MASK_WORKER, D+0xa0		# signals blocked on our own threads
	.set CLONE_FLAGS, D+0xa8
	.set CLONE_STACK, D+0xb0
	.set CLONE_TLS, D+0xb8
	.set CLONE_CTID, D+0xc0
	.set CLONE_RESULT, D+0xc8
	.set RELEASED, D+0xd0			# the borrowed thread is about to leave
	.set MXCSR, D+0xd8
	.set ZERO_TIME, D+0xe0			# struct timespec 0
	.set SHORT_TIME, D+0xf0			# how long the agent naps at first
	.set LONG_TIME, D+0x100			# and later
	.set COMMAND, D+0x110			# number of the newest batch of calls
	.set DONE, D+0x118			# number of the newest batch that is done
	.set QUIT, D+0x120			# number of the batch after which to end, or 0
	.set GONE, D+0x128			# 1: ended as told, 2: ended because nobody told it anything
	.set SHORT_NAPS, D+0x130
	.set LONG_NAPS, D+0x138
	.set UNWIND_SETGR, D+0x140		# _Unwind_SetGR, _Unwind_SetIP of the target
	.set UNWIND_SETIP, D+0x148
	.set AGENT_TID, D+0x150
	.set WORKER_CALLS, D+0x200		# what the raw thread does
	.set CALLS, D+0x400			# the newest batch
	.set ABANDON_CALLS, D+0xa00		# what the agent does if hotpatch vanishes

code_start:
	.ascii	"HOTPATCH-ARENA-1"		# marks the region; see Find

1:	jmp	clone_restart
	.byte	0xeb, 1b-(.+1)			# S-2
clone_S:
	mov	[rip+SAVED_RAX], rax
	mov	qword ptr [rip+RIP_NOHAND], 0		# entered at S: nothing will be restarted
	jmp	2f
clone_restart:
	mov	[rip+SAVED_RAX], rax		# the number to restart
	mov	rcx, [rip+RIP_RESTART]
	mov	[rip+SAVED_RIP], rcx
2:	mov	eax, 14				# rt_sigprocmask(SIG_SETMASK, block, saved, 8)
	mov	edi, 2
	lea	rsi, [rip+MASK_BLOCK]
	lea	rdx, [rip+MASK_SAVED]
	mov	r10d, 8
	syscall
	mov	eax, 56				# clone(flags, stack, parent_tid, child_tid, tls)
	mov	rdi, [rip+CLONE_FLAGS]
	mov	rsi, [rip+CLONE_STACK]
	mov	rdx, [rip+CLONE_CTID]
	mov	r10, [rip+CLONE_CTID]
	mov	r8, [rip+CLONE_TLS]
	syscall
	mov	ecx, eax
	jrcxz	5f				# the new thread; no flag is touched
	jmp	6f
5:	jmp	worker
6:	mov	[rip+CLONE_RESULT], rax
	# Deliver what became pending meanwhile under the thread's own mask, and
	# learn whether a handler ran: then a pause or sigsuspend that was
	# interrupted must return EINTR and not start again.
	mov	eax, 271			# ppoll(NULL, 0, {0,0}, saved, 8)
	mov	edi, 0
	mov	esi, 0
	lea	rdx, [rip+ZERO_TIME]
	lea	r10, [rip+MASK_SAVED]
	mov	r8d, 8
	syscall
	mov	ecx, eax
	jrcxz	3f
	mov	rcx, [rip+RIP_NOHAND]
	jrcxz	3f
	mov	[rip+SAVED_RIP], rcx
	mov	qword ptr [rip+SAVED_RAX], -4
3:	mov	eax, 14				# rt_sigprocmask(SIG_SETMASK, saved, NULL, 8)
	mov	edi, 2
	lea	rsi, [rip+MASK_SAVED]
	mov	edx, 0
	mov	r10d, 8
	syscall
	mov	dword ptr [rip+RELEASED], 1
clone_done:
	mov	r15, [rip+SAVED_R15]
	mov	r14, [rip+SAVED_R14]
	mov	r13, [rip+SAVED_R13]
	mov	r12, [rip+SAVED_R12]
	mov	rbp, [rip+SAVED_RBP]
	mov	rbx, [rip+SAVED_RBX]
	mov	r11, [rip+SAVED_R11]
	mov	r10, [rip+SAVED_R10]
	mov	r9, [rip+SAVED_R9]
	mov	r8, [rip+SAVED_R8]
	mov	rax, [rip+SAVED_RAX]
	mov	rcx, [rip+SAVED_RCX]
	mov	rdx, [rip+SAVED_RDX]
	mov	rsi, [rip+SAVED_RSI]
	mov	rdi, [rip+SAVED_RDI]
	jmp	[rip+SAVED_RIP]

# The raw thread, on a stack and a thread control block of the region. It only
# asks the C library for a real thread, or is the agent itself where there is
# no thread library.
worker:
	xor	ebp, ebp
	cld
	fninit
	ldmxcsr	[rip+MXCSR]
	mov	eax, 14				# rt_sigprocmask(SIG_SETMASK, worker mask, NULL, 8)
	mov	edi, 2
	lea	rsi, [rip+MASK_WORKER]
	xor	edx, edx
	mov	r10d, 8
	syscall
	lea	rbx, [rip+WORKER_CALLS]
	call	run_calls
	mov	eax, 60				# exit: this thread only
	xor	edi, edi
	syscall
	ud2

# The agent: runs batches of calls as the tracer asks for them. It is the start
# routine of a pthread. It looks at COMMAND every SHORT_TIME at first, then every
# LONG_TIME, and ends by itself when nothing comes: hotpatch was killed.
agent_main:
	push	rbx
	push	r12
	push	r13
	mov	eax, 186			# gettid
	syscall
	mov	[rip+AGENT_TID], rax
4:	lea	rbx, [rip+CALLS]
	mov	r13, [rip+COMMAND]
	call	run_calls
	mov	[rip+DONE], r13
	mov	rax, [rip+QUIT]			# of a batch to come, it may be, once DONE is told
	cmp	rax, r13
	je	8f
	lea	rbx, [rip+SHORT_TIME]
	mov	r12, [rip+SHORT_NAPS]
	call	nap
	jnz	4b
	lea	rbx, [rip+LONG_TIME]
	mov	r12, [rip+LONG_NAPS]
	call	nap
	jnz	4b
	lea	rbx, [rip+ABANDON_CALLS]
	call	run_calls
	mov	qword ptr [rip+GONE], 2
	jmp	9f
8:	mov	qword ptr [rip+GONE], 1
9:	xor	eax, eax
	pop	r13
	pop	r12
	pop	rbx
	ret

# nap: sleeps r12 times for [rbx]; not-zero flag as soon as COMMAND differs from r13.
nap:	mov	rax, [rip+COMMAND]
	cmp	rax, r13
	jne	5f
	mov	eax, 35				# nanosleep(rbx, NULL)
	mov	rdi, rbx
	xor	esi, esi
	syscall
	dec	r12
	jnz	nap
5:	ret

# run_calls: rbx -> {function, a0..a5, flags, condition, result}, 80 bytes each,
# ended by function = 0. flags bit i: argument i is the address of its value;
# bit 8: function is a system call number; bit 16 is set afterwards if the call
# threw, and the result is then the exception. condition: address of a word; the
# call is left out if that word is 0. For a C call the stack is aligned.
run_calls:
	push	r14
	push	rbp
	mov	rbp, rsp
	and	rsp, -16
1:	mov	r14, [rbx]
	test	r14, r14
	jz	9f
	mov	rax, [rbx+64]
	test	rax, rax
	jz	2f
	cmp	qword ptr [rax], 0
	je	7f
2:	mov	eax, [rbx+56]
	mov	rdi, [rbx+8]
	test	al, 1
	jz	3f
	mov	rdi, [rdi]
3:	mov	rsi, [rbx+16]
	test	al, 2
	jz	3f
	mov	rsi, [rsi]
3:	mov	rdx, [rbx+24]
	test	al, 4
	jz	3f
	mov	rdx, [rdx]
3:	mov	rcx, [rbx+32]
	test	al, 8
	jz	3f
	mov	rcx, [rcx]
3:	mov	r8, [rbx+40]
	test	al, 16
	jz	3f
	mov	r8, [r8]
3:	mov	r9, [rbx+48]
	test	al, 32
	jz	3f
	mov	r9, [r9]
3:	test	ah, 1
	jnz	6f
	xor	eax, eax
	call	r14
	jmp	8f
caught:					# personality comes here with rax = the exception
	or	qword ptr [rbx+56], 0x10000
	jmp	8f
6:	mov	rax, r14
	mov	r10, rcx
	syscall
8:	mov	[rbx+72], rax
7:	add	rbx, 80
	jmp	1b
9:	mov	rsp, rbp
	pop	rbp
	pop	r14
	ret
run_calls_end:

# The personality of run_calls for the C++ unwinder (Itanium C++ ABI: Exception
# Handling, 1.6): every exception ends there. hotpatch registers an FDE for
# run_calls that names it, while it runs code of a patch.
# edi version, esi actions, rdx class, rcx exception, r8 context
personality:
	mov	eax, 6				# _URC_HANDLER_FOUND
	test	esi, 1				# _UA_SEARCH_PHASE
	jnz	1f
	mov	eax, 8				# _URC_CONTINUE_UNWIND
	test	esi, 4				# _UA_HANDLER_FRAME
	jz	1f
	push	rbx
	mov	rbx, r8
	mov	rdi, r8
	xor	esi, esi			# rax
	mov	rdx, rcx
	call	[rip+UNWIND_SETGR]
	mov	rdi, rbx
	lea	rsi, [rip+caught]
	call	[rip+UNWIND_SETIP]
	mov	eax, 7				# _URC_INSTALL_CONTEXT
	pop	rbx
1:	ret
code_end:
	.globl _start
	.set _start, boot_start
