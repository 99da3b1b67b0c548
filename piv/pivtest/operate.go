package pivtest

// generate is GENERATE ASYMMETRIC KEY PAIR (SP 800-73-4 Part 2, Section 3.3.1).
func (c *Card) generate(cmd command) ([]byte, sw) {
	if !c.power.admin {
		return nil, swSecurity
	}
	if cmd.p1 != 0 || !isKeySlot(cmd.p2) {
		return nil, swWrongP1P2
	}
	t, ok := decodeOnly(0xAC, cmd.data)
	if !ok || len(t[0x80]) != 1 || c.config.Plain && len(t) > 1 {
		return nil, swWrongData
	}
	pin, touch, ok := policyTags(t)
	if !ok {
		return nil, swWrongData
	}
	key, status := c.newKey(cmd.p2, t[0x80][0], pin, touch)
	if status != swOK {
		return nil, status
	}
	c.state.keys[cmd.p2] = key
	return encode(0x7F49, key.encodePublic()), swOK
}

// importKey is IMPORT ASYMMETRIC KEY, Yubico's.
func (c *Card) importKey(cmd command) sw {
	if !c.power.admin {
		return swSecurity
	}
	if !isKeySlot(cmd.p2) || !c.knows(cmd.p1) {
		return swWrongP1P2
	}
	t, ok := decodeAll(cmd.data)
	if !ok {
		return swWrongData
	}
	pin, touch, ok := policyTags(t)
	if !ok {
		return swWrongData
	}
	if pin, touch, ok = policies(cmd.p2, pin, touch); !ok {
		return swWrongData
	}
	private, ok := importKey(cmd.p1, t)
	if !ok {
		return swWrongData
	}
	c.state.keys[cmd.p2] = &slotKey{private, cmd.p1, pin, touch, originImported}
	return swOK
}

// policyTags reads the policies in the tags AA and AB.
func policyTags(t map[uint32][]byte) (pin, touch byte, ok bool) {
	for tag, to := range map[uint32]*byte{0xAA: &pin, 0xAB: &touch} {
		value, given := t[tag]
		if given && len(value) != 1 {
			return 0, 0, false
		}
		if given {
			*to = value[0]
		}
	}
	return pin, touch, true
}

// moveKey moves a key to an empty slot, or deletes it if the target is FF.
func (c *Card) moveKey(to, from byte) sw {
	if !c.power.admin {
		return swSecurity
	}
	if !isKeySlot(from) || to != 0xFF && (!isKeySlot(to) || from == SlotAttestation || to == SlotAttestation) {
		return swWrongP1P2
	}
	key := c.state.keys[from]
	if key == nil {
		return swNoReference
	}
	if to != 0xFF {
		if c.state.keys[to] != nil {
			return swConditions
		}
		c.state.keys[to] = key
	}
	delete(c.state.keys, from)
	return swOK
}

// authenticate is GENERAL AUTHENTICATE (SP 800-73-4 Part 2, Section 3.2.4): with the
// management key it proves it, with another key it uses it.
func (c *Card) authenticate(cmd command, fresh bool) ([]byte, sw) {
	t, ok := decodeOnly(0x7C, cmd.data)
	if !ok {
		return nil, swWrongData
	}
	if cmd.p2 == SlotManagement {
		return c.proveManagement(cmd.p1, t)
	}
	key := c.state.keys[cmd.p2]
	if key == nil || key.alg != cmd.p1 {
		return nil, swWrongData
	}
	if cmd.p2 == SlotAttestation || !c.mayUse(key, fresh) {
		return nil, swSecurity
	}
	if status := c.touch.ask(key.touch); status != swOK {
		return nil, status
	}
	answer, ok := use(key.privateKey, t)
	if !ok {
		return nil, swWrongData
	}
	return encode(0x7C, encode(0x82, answer)), swOK
}

// mayUse reports whether the PIN policy of the key is satisfied; fresh says that the
// command just before was a successful VERIFY.
func (c *Card) mayUse(key *slotKey, fresh bool) bool {
	switch key.pin {
	case PINPolicyNever:
		return true
	case PINPolicyAlways:
		return fresh
	}
	return c.power.pinVerified
}

// use does the private operation that the template asks for. Not every host sends the empty
// tag 82 that asks for the response.
func use(key privateKey, t map[uint32][]byte) ([]byte, bool) {
	challenge, signs := t[0x81]
	point, agrees := t[0x85]
	if signs == agrees || len(t[0x82]) != 0 {
		return nil, false
	}
	if signs {
		k, ok := key.(signer)
		if !ok {
			return nil, false
		}
		return k.sign(challenge)
	}
	k, ok := key.(agreer)
	if !ok {
		return nil, false
	}
	return k.agree(point)
}
