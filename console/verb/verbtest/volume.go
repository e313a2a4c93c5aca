package verbtest

import (
	"slices"

	"guardhouse/appliance/policy"
	"guardhouse/appliance/rpc"
)

// RecoveryText is the recovery passphrase that the fake makes and takes.
const RecoveryText = "AAAA-BBBB-CCCC-DDDD"

// volume is init's side of the data volume.
func (f *Fake) volume(s *rpc.Server) {
	on(f, s, rpc.InitVolume, func(rpc.Empty) (rpc.VolumeReply, error) { return f.Volume(), nil })
	on(f, s, rpc.InitRecoveryDraft, func(r rpc.RecoveryDraftRequest) (rpc.RecoveryDraft, error) {
		if v := f.Volume(); v.Secret != "" && (len(r.Current) == 0 || string(r.Current[0]) != RecoveryText) {
			return rpc.RecoveryDraft{}, rpc.ErrRefused.With("this is not recovery secret %s; look for the one of that name", v.Secret)
		}
		d := rpc.RecoveryDraft{Secret: "0badcafe", Form: r.Form, Texts: [][]byte{[]byte(RecoveryText)}}
		if r.Form == "shares" {
			d.Texts = [][]byte{[]byte("1AAA"), []byte("2BBB"), []byte("3CCC")}
		}
		return d, nil
	})
	on(f, s, rpc.InitRecoveryConfirm, func(r rpc.RecoveryTexts) (rpc.VolumeReply, error) {
		v := f.Volume()
		v.Secret, v.Form = "0badcafe", "passphrase"
		if len(r.Texts) == 3 {
			v.Form = "shares"
		}
		f.SetVolume(v)
		return v, nil
	})
	on(f, s, rpc.InitUnlock, func(r rpc.RecoveryTexts) (rpc.VolumeReply, error) {
		v := f.Volume()
		if string(r.Texts[0]) != RecoveryText {
			return v, rpc.ErrRefused.With("this is not recovery secret %s; look for the one of that name", v.Secret)
		}
		v.State, v.Changed = rpc.VolumeTyped, []string{"TPM: another one than sealed the volume, or it was cleared", "boot: signed as \"1.0\", release 1", "generation: the disk is at 7"}
		f.SetVolume(v)
		return v, nil
	})
	on(f, s, rpc.InitTimeRecover, func(r rpc.TimeRecoverRequest) (rpc.ClockStatusReply, error) {
		if string(r.Texts[0]) != RecoveryText {
			return rpc.ClockStatusReply{}, rpc.ErrRefused.With("this is not recovery secret %s; look for the one of that name", f.Volume().Secret)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		r.Texts = nil
		f.recovered = append(f.recovered, r)
		return rpc.ClockStatusReply{State: rpc.ClockManual}, nil
	})
	on(f, s, rpc.InitReseal, func(rpc.Empty) (rpc.VolumeReply, error) {
		v := f.Volume()
		v.State, v.Changed = rpc.VolumeTPM, nil
		f.SetVolume(v)
		return v, nil
	})
	on(f, s, rpc.InitFactoryReset, func(r rpc.FactoryResetRequest) (rpc.FactoryResetReply, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.destroyed = append(f.destroyed, r.Destroy...)
		if len(r.Destroy) > 0 && f.fate != nil && len(f.fate.Left) > 0 {
			return rpc.FactoryResetReply{Keys: f.fate}, nil
		}
		f.power = append(f.power, "factory-reset")
		return rpc.FactoryResetReply{Ends: true}, nil
	})
}

// SetResetKeys sets the ledger's answer about keys in the HSM. fate is what init tells of those that were to be destroyed.
func (f *Fake) SetResetKeys(r rpc.ResetKeysReply, fate *rpc.DestroyKeysReply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.resetKeys, f.fate = r, fate
}

// Destroyed are the keys that init was asked to have destroyed.
func (f *Fake) Destroyed() []policy.KeyRef {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.destroyed
}

// Recovered are the times that counted by the recovery secret, without it.
func (f *Fake) Recovered() []rpc.TimeRecoverRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.recovered)
}

// Volume is the state of the data volume.
func (f *Fake) Volume() rpc.VolumeReply {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.vol
}

// SetVolume changes it.
func (f *Fake) SetVolume(v rpc.VolumeReply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.vol = v
}
