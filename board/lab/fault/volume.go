package fault

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// frontEnv marks the child process that holds a Volume's disk: its value is the front's configuration.
const frontEnv = "GUARDHOUSE_FAULT_FRONT"

// Volume is an ext4 file system on a fault disk, mounted for native programs: the image appears through FUSE as one
// file, a loop device lies over it. Disk and FUSE server live in a child process, because a process that serves its
// own page faults (bbolt maps its file) stops for ever. Needs root, /dev/fuse and loop devices: see [Unavailable].
//
// When the process that opened the volume dies, the child unmounts everything and ends.
//
// A Volume's methods must not be called concurrently; programs on it may run as they like.
type Volume struct {
	// Dir is where the file system is mounted.
	Dir string

	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	said *bounded
}

// VolumeOptions describes a volume. Dir is needed.
type VolumeOptions struct {
	// Dir is the folder of the volume, made when absent: the image "disk.img", and the mount points "front" and
	// "mnt" (Volume.Dir).
	Dir string
	// Size is the size of a new image in bytes; 0 means 64 MiB.
	Size int64
	// MountOptions are further ext4 options, such as "nobarrier" to see acknowledged data get lost.
	MountOptions string
}

// Unavailable says why volumes do not work here, or "". It is the reason for a test to skip, and the only one.
func Unavailable() string {
	if os.Geteuid() != 0 {
		return "mounting a fault disk needs root"
	}
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		return "mounting a fault disk needs /dev/fuse: " + err.Error()
	} else {
		f.Close()
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return "mounting a fault disk needs loop devices: " + err.Error()
	}
	return ""
}

// Message between a Volume and its front, one JSON object a line.
type frontRequest struct {
	Op   string `json:"op"` // ready, mount, cut, unmount
	Seed uint64 `json:"seed,omitempty"`
}

type frontReply struct {
	Error  string  `json:"error,omitempty"`
	Report *Report `json:"report,omitempty"`
}

// frontConfig travels in the environment.
type frontConfig struct {
	Image, Front, Mnt, Options string
	Size                       int64
}

// OpenVolume starts the front of a volume; nothing is mounted yet. The test binary must call [Front] first thing in
// its TestMain. ctx bounds the start, not the volume.
func OpenVolume(ctx context.Context, o VolumeOptions) (*Volume, error) {
	if why := Unavailable(); why != "" {
		return nil, errors.New("fault volume: " + why)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("fault volume: %w", err)
	}
	if o.Size == 0 {
		o.Size = 64 << 20
	}
	cfg := frontConfig{
		Image: filepath.Join(dir, "disk.img"), Front: filepath.Join(dir, "front"), Mnt: filepath.Join(dir, "mnt"),
		Options: o.MountOptions, Size: o.Size,
	}
	// Programs of other users work in Mnt; the image and its FUSE file are root's.
	for _, d := range []string{cfg.Mnt, cfg.Front} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("fault volume: %w", err)
		}
	}
	if err := os.Chmod(cfg.Front, 0o700); err != nil {
		return nil, fmt.Errorf("fault volume: %w", err)
	}
	env, err := json.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("fault volume: %w", err)
	}
	// -test.run keeps a binary without the hook from running its tests again.
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), frontEnv+"="+string(env))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it: it ends when its input does
	v := &Volume{Dir: cfg.Mnt, cmd: cmd, said: &bounded{}}
	cmd.Stderr = v.said
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		v.in, err = cmd.StdinPipe()
	}
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("fault volume: %w", err)
	}
	v.out = bufio.NewReader(stdout)
	if _, err := v.call(ctx, frontRequest{Op: "ready"}); err != nil {
		v.Close()
		return nil, fmt.Errorf("%w (does TestMain call fault.Front?)", err)
	}
	return v, nil
}

// Mount powers the disk on when it was cut, makes a file system when there is none, replays its journal with e2fsck
// and mounts it.
func (v *Volume) Mount(ctx context.Context) error {
	_, err := v.call(ctx, frontRequest{Op: "mount"})
	return err
}

// Cut takes the disk's power: see [Disk.Cut]. Programs on the volume get errors from then on; end them, then Unmount.
func (v *Volume) Cut(ctx context.Context, seed uint64) (Report, error) {
	r, err := v.call(ctx, frontRequest{Op: "cut", Seed: seed})
	if err != nil || r.Report == nil {
		return Report{}, err
	}
	return *r.Report, nil
}

// Unmount unmounts the file system: orderly when the disk has power, and otherwise as the kernel can. It waits a
// few seconds for programs that still hold files.
func (v *Volume) Unmount(ctx context.Context) error {
	_, err := v.call(ctx, frontRequest{Op: "unmount"})
	return err
}

// Close unmounts what is mounted and ends the front. The image stays in the volume's folder.
func (v *Volume) Close() error {
	v.in.Close()
	done := make(chan error, 1)
	go func() { done <- v.cmd.Wait() }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("fault volume: front: %w: %s", err, v.said)
		}
		return nil
	case <-time.After(15 * time.Second):
		_ = v.cmd.Process.Kill()
		<-done
		return errors.New("fault volume: the front did not end and was killed")
	}
}

// call sends one request and waits for its answer.
func (v *Volume) call(ctx context.Context, q frontRequest) (frontReply, error) {
	var r frontReply
	err := json.NewEncoder(v.in).Encode(q)
	if err == nil {
		answer := make(chan error, 1)
		go func() {
			line, err := v.out.ReadBytes('\n')
			if err == nil {
				err = json.Unmarshal(line, &r)
			}
			answer <- err
		}()
		select {
		case err = <-answer:
		case <-ctx.Done():
			// The stream is out of step now: end the front, so that the reader ends too.
			v.in.Close()
			_ = v.cmd.Process.Kill()
			<-answer
			return frontReply{}, fmt.Errorf("fault volume: %s: %w", q.Op, ctx.Err())
		}
	}
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return frontReply{}, fmt.Errorf("fault volume: %s: %w: %s", q.Op, err, v.said)
	}
	return r, nil
}

// bounded keeps the first 4 kB of what is written to it.
type bounded struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := 4096 - b.b.Len(); room > 0 {
		b.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
