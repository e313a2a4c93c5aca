package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"guardhouse/appliance/disk"
)

// A USB device that is plugged in gets no driver: the kernel knows of its port, no more (board/generic, usbcore). It is let in while a
// verb reads it, and out again.
const (
	stickFiles = updateFile + "*" // so that the release's number can stay in the name
	stickWait  = 20 * time.Second // for a stick to tell what it is
	stickLook  = 500 * time.Millisecond
)

// feedFromStick reads the bundle from an attached disk into the child.
func (n *node) feedFromStick(ctx context.Context, st *updateStream) error {
	defer st.in.Close()
	let := map[string]bool{}
	defer func() {
		for device := range let {
			if err := authorize(device, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
				n.logf("the USB device %s was not let out: %v", device, err)
			}
		}
	}()
	for deadline := time.Now().Add(stickWait); ; {
		for _, device := range unauthorized("/sys") { // a hub brings more
			if err := authorize(device, "1"); err != nil {
				return fmt.Errorf("the USB device %s can't be used: %w", device, err)
			}
			let[device] = true
		}
		err := n.finder.BootFile(bootDir+"-stick", stickFiles, func(name string, f io.Reader) error {
			n.logf("update: reading %.100q from an attached disk", name)
			return st.feed(f)
		})
		if !errors.Is(err, disk.ErrNoFile) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-st.done:
			return err
		case <-time.After(stickLook):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// feed copies f to the child, which has said why where it takes no more.
func (st *updateStream) feed(f io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		size, err := f.Read(buf)
		if size > 0 {
			st.rest.Reset(streamRest)
			if _, werr := st.in.Write(buf[:size]); werr != nil {
				return nil
			}
		}
		if err == io.EOF {
			st.rest.Reset(streamEnd)
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// unauthorized lists the USB devices that the kernel keeps its drivers from.
func unauthorized(sys string) (devices []string) {
	files, _ := filepath.Glob(filepath.Join(sys, "bus/usb/devices/*/authorized"))
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == "0" && !strings.Contains(name, ":") { // a colon: an interface of a device
			devices = append(devices, name)
		}
	}
	return devices
}

// authorize lets a USB device in ("1") or out ("0"). The kernel's tree of devices is writable for that moment.
func authorize(device, value string) error {
	if err := unix.Mount("", "/sys", "", unix.MS_REMOUNT|quiet, ""); err != nil {
		return fmt.Errorf("make /sys writable: %w", err)
	}
	err := os.WriteFile(filepath.Join("/sys/bus/usb/devices", device, "authorized"), []byte(value), 0)
	return errors.Join(err, unix.Mount("", "/sys", "", unix.MS_REMOUNT|unix.MS_RDONLY|quiet, ""))
}
