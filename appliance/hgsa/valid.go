package hgsa

import "encoding/json"

// valid is json.Valid, made fast for what makes bodies long: lists of small
// numbers, which is how the genuine serializer writes bytes. Such a list is
// checked here and stands as [0] in what json.Valid gets to see. That changes
// nothing: outside of strings one list of numbers is as good as another.
func valid(body []byte) bool {
	var skeleton []byte
	from := 0
	for i := 0; i < len(body); {
		switch body[i] {
		case '"':
			for i++; i < len(body) && body[i] != '"'; i++ {
				if body[i] == '\\' {
					i++
				}
			}
			i++
		case '[':
			end := plainList(body, i)
			if end == 0 {
				i++
				continue
			}
			skeleton = append(append(skeleton, body[from:i]...), "[0]"...)
			i = end + 1
			from = i
		default:
			i++
		}
	}
	if from == 0 {
		return json.Valid(body)
	}
	return json.Valid(append(skeleton, body[from:]...))
}

// plainList gives the index of the bracket that ends the list beginning at i, if
// the list has elements and all are numbers of one to three digits, without sign
// and white space; else 0.
func plainList(b []byte, i int) int {
	for i++; i < len(b); i++ {
		start := i
		for i < len(b) && b[i] >= '0' && b[i] <= '9' {
			i++
		}
		digits := i - start
		if digits == 0 || digits > 3 || i == len(b) || digits > 1 && b[start] == '0' {
			return 0
		}
		if b[i] == ']' {
			return i
		}
		if b[i] != ',' {
			return 0
		}
	}
	return 0
}

// plainNumbers appends the elements of a plain list; false if one is no byte.
func plainNumbers(out, list []byte) ([]byte, bool) {
	n := 0
	for _, c := range list {
		if c != ',' {
			n = n*10 + int(c-'0')
			continue
		}
		if n > 255 {
			return nil, false
		}
		out, n = append(out, byte(n)), 0
	}
	return append(out, byte(n)), n <= 255
}
