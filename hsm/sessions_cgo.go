//go:build cgo

package hsm

import (
	"errors"
	"sync"

	"github.com/miekg/pkcs11"
)

// slot holds the sessions with one token. A session does one operation at a time: two
// threads in one session crash some modules. Each operation takes a session that is free, the
// last used first, and a session in which anything failed is closed, because an operation may
// still be active in it.
//
// The anchor is a session that does nothing: the login ends with the last session. A token that
// allows one session only works in its anchor.
type slot struct {
	ctx *pkcs11.Ctx
	id  uint

	mu      sync.Mutex
	changed *sync.Cond
	anchor  pkcs11.SessionHandle // guarded by mu, as all below; 0 if there is none
	idle    []pkcs11.SessionHandle
	open    int // sessions besides the anchor
	limit   int // of open; 0 where the anchor works
	working bool
}

func newSlot(ctx *pkcs11.Ctx, id uint, limit int) *slot {
	s := &slot{ctx: ctx, id: id, limit: limit}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// do runs f with a session that nobody else uses.
func (s *slot) do(f func(pkcs11.SessionHandle) error) error {
	h, err := s.acquire()
	if err != nil {
		return err
	}
	err = f(h)
	s.release(h, err)
	return err
}

// acquire waits for a session. Opening one is done with mu held: it happens a few times only,
// and the count must be right when the token refuses.
func (s *slot) acquire() (pkcs11.SessionHandle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdAnchor(); err != nil {
		return 0, err
	}
	for {
		if n := len(s.idle); n > 0 {
			h := s.idle[n-1]
			s.idle = s.idle[:n-1]
			return h, nil
		}
		if s.open < s.limit {
			h, err := s.openSession()
			if err == nil {
				s.open++
				return h, nil
			}
			if !errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_COUNT)) {
				return 0, err
			}
			s.limit = s.open // the token has no more
			continue
		}
		if s.limit == 0 && !s.working {
			if err := s.holdAnchor(); err != nil {
				return 0, err
			}
			s.working = true
			return s.anchor, nil
		}
		s.changed.Wait()
	}
}

func (s *slot) release(h pkcs11.SessionHandle, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case h == s.anchor:
		s.working = false
		if err != nil {
			s.ctx.CloseSession(h) // the login goes with it
			s.anchor = 0
		}
	case err == nil:
		s.idle = append(s.idle, h)
	default:
		s.closeSession(h)
		if forgotten(err) {
			for _, h := range s.idle {
				s.closeSession(h)
			}
			s.idle = nil
		}
	}
	s.changed.Broadcast()
}

// closeSession closes a session besides the anchor. The caller holds mu.
func (s *slot) closeSession(h pkcs11.SessionHandle) {
	s.ctx.CloseSession(h)
	s.open--
}

// forgotten reports whether a module says of a session that it is none any more, as it does when the token was taken out and
// put back. Then the others are none either.
func forgotten(err error) bool {
	return errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_HANDLE_INVALID)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_SESSION_CLOSED))
}

// openSession opens a session for writing, or for reading where the token allows no more.
func (s *slot) openSession() (pkcs11.SessionHandle, error) {
	h, err := s.ctx.OpenSession(s.id, pkcs11.CKF_SERIAL_SESSION|pkcs11.CKF_RW_SESSION)
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_TOKEN_WRITE_PROTECTED)) {
		h, err = s.ctx.OpenSession(s.id, pkcs11.CKF_SERIAL_SESSION)
	}
	return h, err
}

// holdAnchor opens the anchor if there is none. The caller holds mu.
func (s *slot) holdAnchor() error {
	if s.anchor != 0 {
		return nil
	}
	h, err := s.openSession()
	if err == nil {
		s.anchor = h
	}
	return err
}

// doAnchor runs f with the anchor, if it does not do other operations: for objects that are to live as
// long as the login.
func (s *slot) doAnchor(f func(pkcs11.SessionHandle) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.anchor == 0 || s.limit == 0 {
		return pkcs11.Error(pkcs11.CKR_FUNCTION_NOT_SUPPORTED)
	}
	return f(s.anchor)
}

// awaitAnchor waits until no operation is in the anchor. The caller holds mu.
func (s *slot) awaitAnchor() {
	for s.working {
		s.changed.Wait()
	}
}

// login presents the PIN once. If somebody is logged in, that says nothing of this PIN, and
// so that login is ended first.
func (s *slot) login(pin []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awaitAnchor()
	if err := s.holdAnchor(); err != nil {
		return err
	}
	err := s.ctx.Login(s.anchor, pkcs11.CKU_USER, string(pin))
	if forgotten(err) {
		// The module has forgotten its sessions. The PIN was not looked at.
		s.anchor = 0
		if err := s.holdAnchor(); err != nil {
			return err
		}
		err = s.ctx.Login(s.anchor, pkcs11.CKU_USER, string(pin))
	}
	if errors.Is(err, pkcs11.Error(pkcs11.CKR_USER_ALREADY_LOGGED_IN)) {
		if err := s.ctx.Logout(s.anchor); err != nil {
			return err
		}
		err = s.ctx.Login(s.anchor, pkcs11.CKU_USER, string(pin))
	}
	return err
}

func (s *slot) logout() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awaitAnchor()
	if s.anchor == 0 {
		return nil
	}
	return s.ctx.Logout(s.anchor)
}
