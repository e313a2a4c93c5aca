package lab
type Token struct{}
type plug struct{}
func (t *Token) plugInto(string) (*plug, error) { return nil, nil }
func (p *plug) drop(){}
func (p *plug) close(){}
func (p *plug) setOut(bool){}
