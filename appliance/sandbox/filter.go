package sandbox

import (
	"fmt"
	"maps"
	"slices"
	"unsafe"

	"github.com/elastic/go-seccomp-bpf/arch"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// This file turns a table of system calls into the kernel's program and loads it. It is our own because a list of refused calls has to
// refuse the other two ways into the kernel of x86-64 as well, i386 and x32, where the same numbers are other calls.

// What the kernel does with a call.
const (
	allow   uint32 = unix.SECCOMP_RET_ALLOW
	refuse  uint32 = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	missing uint32 = unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	kill    uint32 = unix.SECCOMP_RET_KILL_PROCESS
)

// callPolicy says what becomes of each call. Numbers above newest are missing; 0 = there is no such bound.
type callPolicy struct {
	calls     map[string]verdict
	otherwise uint32
	newest    uint32
}

// verdict of one call: the first branch whose tests all hold decides.
type verdict struct {
	branches  []branch
	otherwise uint32
}

type branch struct {
	all  []test
	then uint32
}

// test looks at the low half of an argument, which is all that the kernel uses of those tested here: its bits under mask are want.
type test struct {
	arg        int
	mask, want uint32
}

const wholeHalf = ^uint32(0)

// Offsets in struct seccomp_data, and the first number of the x32 calls.
const (
	numberAt   = 0
	archAt     = 4
	argumentAt = 16
	firstX32   = 0x40000000
)

func load32(at uint32) bpf.Instruction { return bpf.LoadAbsolute{Off: at, Size: 4} }

// program is what the kernel runs at each call. A call by another architecture's table ends the process: no program of an image makes one.
func (p callPolicy) program() ([]bpf.Instruction, error) {
	numbers := map[int]verdict{}
	for name, v := range p.calls {
		nr, ok := arch.X86_64.SyscallNames[name]
		if !ok {
			return nil, fmt.Errorf("there is no system call %q", name)
		}
		numbers[nr] = v
	}
	prog := []bpf.Instruction{
		load32(archAt), bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(arch.X86_64.ID), SkipTrue: 1}, bpf.RetConstant{Val: kill},
		load32(numberAt), bpf.JumpIf{Cond: bpf.JumpGreaterOrEqual, Val: firstX32, SkipFalse: 1}, bpf.RetConstant{Val: kill},
	}
	if p.newest != 0 {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: p.newest, SkipFalse: 1}, bpf.RetConstant{Val: missing})
	}
	for _, nr := range slices.Sorted(maps.Keys(numbers)) {
		body := numbers[nr].assemble()
		// Every path through body returns: behind it the number is in the accumulator still.
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(nr), SkipTrue: 1}, bpf.Jump{Skip: uint32(len(body))})
		prog = append(prog, body...)
	}
	return append(prog, bpf.RetConstant{Val: p.otherwise}), nil
}

func (v verdict) assemble() (body []bpf.Instruction) {
	for _, b := range v.branches {
		const each = 3 // instructions of a test
		for i, t := range b.all {
			rest := each*(len(b.all)-i-1) + 1
			body = append(body, load32(argumentAt+8*uint32(t.arg)), bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: t.mask},
				bpf.JumpIf{Cond: bpf.JumpEqual, Val: t.want, SkipFalse: uint8(rest)})
		}
		body = append(body, bpf.RetConstant{Val: b.then})
	}
	return append(body, bpf.RetConstant{Val: v.otherwise})
}

// load puts the filter on this thread, for good; flags may say: on all threads. The kernel logs what ends a process; what only fails it does not, because a C library
// tries some of it each time it makes a thread.
func (p callPolicy) load(flags uintptr) error {
	prog, err := p.program()
	if err != nil {
		return err
	}
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return err
	}
	list := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		list[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	filter := unix.SockFprog{Len: uint16(len(list)), Filter: &list[0]}
	thread, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&filter)))
	if e != 0 {
		return fmt.Errorf("this kernel does not take the filter: %w", e)
	}
	if thread != 0 { // with TSYNC; the filter is on none then
		return fmt.Errorf("thread %d has a filter of its own", thread)
	}
	return nil
}
