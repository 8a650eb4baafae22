package config

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

const hidden = "***"

// hide returns a secret as it may be shown: a URL or a connection string
// without its password, anything else not at all.
func hide(key, secret string) string {
	switch {
	case secret == "":
		return ""
	case !strings.HasSuffix(key, "url"):
		return hidden
	case strings.Contains(secret, "://"):
		return hideInURL(secret)
	}
	return hideInKeywords(secret)
}

// hideInURL hides the password of a URL and passwords among its parameters. In
// a URL that is ambiguous, because its password has an unescaped @ or /, it
// rather hides too much. It works on the text, since parsing and printing
// again would change the rest.
func hideInURL(text string) string {
	scheme, rest, _ := strings.Cut(text, "://")
	// A password may have a ? before its @ for pgx, and none for net/url.
	end := strings.IndexAny(rest, "@/")
	if end < 0 || rest[end] != '@' {
		end = -1
	}
	tail := rest[end+1:]
	question := strings.IndexByte(tail, '?')
	if question < 0 {
		question = len(tail)
	}
	if at := strings.LastIndexByte(tail[:question], '@'); at >= 0 {
		end += at + 1
	}
	var out strings.Builder
	out.WriteString(scheme + "://")
	if end >= 0 {
		user, _, hasPassword := strings.Cut(rest[:end], ":")
		out.WriteString(user)
		if hasPassword {
			out.WriteString(":" + hidden)
		}
		out.WriteByte('@')
	}
	tail, query, hasQuery := strings.Cut(rest[end+1:], "?")
	out.WriteString(tail)
	if !hasQuery {
		return out.String()
	}
	parameters := strings.Split(query, "&")
	for i, parameter := range parameters {
		key, _, hasValue := strings.Cut(parameter, "=")
		if name, err := url.QueryUnescape(key); hasValue && (err != nil || isPassword(name)) {
			parameters[i] = key + "=" + hidden
		}
	}
	return out.String() + "?" + strings.Join(parameters, "&")
}

// hideInKeywords hides the passwords of a keyword/value connection string. It
// reads it as libpq does: key = value or key = 'value', with backslashes.
func hideInKeywords(text string) string {
	const space = " \t\n\r\v\f"
	var pairs []string
	for text = strings.TrimLeft(text, space); text != ""; text = strings.TrimLeft(text, space) {
		key, rest, found := strings.Cut(text, "=")
		key = strings.Trim(key, space)
		if !found || !isKeyword(key) {
			return hidden
		}
		rest = strings.TrimLeft(rest, space)
		end, quoted := 0, strings.HasPrefix(rest, "'")
		if quoted {
			end = 1
		}
		for end < len(rest) && (quoted && rest[end] != '\'' || !quoted && !strings.ContainsRune(space, rune(rest[end]))) {
			if rest[end] == '\\' {
				end++
			}
			end++
		}
		if quoted {
			end++
		}
		end = min(end, len(rest))
		value := rest[:end]
		if isPassword(key) && value != "" {
			value = hidden
		}
		pairs = append(pairs, key+"="+value)
		text = rest[end:]
	}
	return strings.Join(pairs, " ")
}

func isPassword(key string) bool {
	key = strings.ToLower(key)
	return strings.Contains(key, "password") || strings.Contains(key, "secret") || strings.Contains(key, "passphrase")
}

// isKeyword reports whether key looks like a connection parameter and not like
// the remains of a value.
func isKeyword(key string) bool {
	for i := range len(key) {
		c := key[i]
		if c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return key != ""
}

// longWord is the length from which a secret is replaced inside other words
// too. A shorter one would be found in innocent words, and the gaps tell it.
const longWord = 6

// censor replaces in message whatever it repeats of secrets and of values from
// the environment at path or below. It is for messages that others wrote.
func (d *document) censor(path, message string, secrets map[string]string) string {
	for at, secret := range secrets {
		if !below(at, path) {
			continue
		}
		for _, fragment := range fragmentsOf(secret) {
			if len(fragment) >= longWord {
				message = strings.ReplaceAll(message, fragment, hidden)
			} else {
				message = replaceWord(message, fragment, hidden)
			}
		}
	}
	for at, from := range d.expanded {
		if !below(at, path) {
			continue
		}
		message = strings.ReplaceAll(message, strconv.Quote(from.value), "the value of "+from.reference())
		for _, fragment := range append([]string{from.value}, strings.FieldsFunc(from.value, isSeparator)...) {
			message = replaceWord(message, fragment, hidden)
		}
	}
	return message
}

func isSeparator(c rune) bool { return strings.ContainsRune(":/@?&=, ", c) }

// replaceWord replaces word in text where it is not part of a longer word: a
// value may be as short as a digit.
func replaceWord(text, word, by string) string {
	if word == "" {
		return text
	}
	var out strings.Builder
	for {
		at := strings.Index(text, word)
		if at < 0 {
			out.WriteString(text)
			return out.String()
		}
		end := at + len(word)
		out.WriteString(text[:at])
		if at > 0 && isWord(text[at-1]) && isWord(word[0]) || end < len(text) && isWord(text[end]) && isWord(word[len(word)-1]) {
			out.WriteString(word)
		} else {
			out.WriteString(by)
		}
		text = text[end:]
	}
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c >= 0x80
}

// fragmentsOf returns the forms in which a message may repeat a secret: whole,
// and for a URL its password, as written and decoded.
func fragmentsOf(secret string) []string {
	fragments := []string{secret}
	_, rest, isURL := strings.Cut(secret, "://")
	if !isURL {
		return fragments
	}
	for i := range len(rest) {
		if rest[i] != '@' {
			continue
		}
		_, password, _ := strings.Cut(rest[:i], ":")
		fragments = append(fragments, password)
		if decoded, err := url.PathUnescape(password); err == nil {
			fragments = append(fragments, decoded)
		}
	}
	slices.SortFunc(fragments, func(a, b string) int { return len(b) - len(a) })
	return fragments
}
