package site

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"guardhouse/appliance/rpc"
	"guardhouse/board/lab"
)

// ownDisk makes the machine's own boot disk, which an update writes to.
func (s *Site) ownDisk(ctx context.Context) error {
	if _, err := os.Stat(s.bootDisk()); err == nil {
		return nil
	}
	// The image is sparse; a copy that is not would be 130 MiB.
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", s.Image.Disk, s.bootDisk()).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the boot disk: %w: %.200s", err, out)
	}
	return nil
}

func (s *Site) bootDisk() string { return filepath.Join(s.Lab.Dir, "boot.img") }

// BootDelivered boots the image as it was delivered, whatever was installed since.
func (s *Site) BootDelivered(ctx context.Context) error {
	return s.BootWith(ctx, func(o *lab.NodeOptions) { o.Image, o.ImageWritable = s.Image.Disk, false })
}

// NextRelease builds this tree once more as the release after number and makes the file that updates a node to it.
func (s *Site) NextRelease(ctx context.Context, number uint64) (bundle []byte, err error) {
	const folder = "image-next"
	args := []string{"--release", fmt.Sprint(number + 1)}
	if s.HSM != "" {
		args = append(args, "--hsm", s.HSM)
	}
	if _, err := buildImage(ctx, s.Build, folder, args...); err != nil {
		return nil, err
	}
	root, err := moduleRoot(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(s.Build, folder)
	file := filepath.Join(dir, "guardhouse-update")
	cmd := exec.CommandContext(ctx, "go", "run", "guardhouse/cmd/mkimage", "release", "--image", dir, "--keys", filepath.Join(s.Build, "cache", "keys-evaluation"), "-o", file)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make the release: %w: %.300s", err, out)
	}
	return os.ReadFile(file)
}

// Update is what the node says of its releases.
func (s *Site) Update(ctx context.Context) (u rpc.UpdateStatus, err error) {
	err = s.JSON(ctx, nil, &u, "update", "status")
	return u, err
}
