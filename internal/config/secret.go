package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// A secret is a key with a twin: password and password_file. That is the whole
// definition; everything that hides or reads secrets goes by it.
const twinSuffix = "_file"

// longestSecret bounds what is read of a *_file, which may be anything.
const longestSecret = 64 << 10

// readSecrets reads every *_file of a secret below target into the secret's
// field, clears the *_file field and notes it in files.
func (d *document) readSecrets(path string, target reflect.Value, files map[string]string) {
	eachSecret(path, target, func(path string, value, file reflect.Value) {
		if file.String() == "" {
			return
		}
		filePath := path + twinSuffix
		if value.String() != "" {
			d.errorf(filePath, "%s is given too; give one of the two", lastKey(path))
			return
		}
		text, err := readSecret(file.String())
		if err != nil {
			shown := file.String()
			if from, ok := d.expanded[filePath]; ok {
				shown = "the file named by " + from.reference()
			}
			d.errorf(filePath, "%s: %v", shown, err)
			return
		}
		value.SetString(text)
		files[path] = file.String()
		file.SetString("")
	})
}

// readSecret returns the content of a file without its last newline. Errors
// do not name the file.
func readSecret(path string) (string, error) {
	file, err := os.Open(path)
	if err != nil {
		return "", withoutPath(err)
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, longestSecret+1))
	if err != nil {
		return "", withoutPath(err)
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case len(data) > longestSecret:
		return "", fmt.Errorf("is larger than %d bytes, which no secret is", longestSecret)
	case text == "":
		return "", errors.New("is empty")
	case strings.ContainsRune(text, 0):
		return "", errors.New("has a NUL byte")
	}
	return text, nil
}

func withoutPath(err error) error {
	if pathError, ok := errors.AsType[*fs.PathError](err); ok {
		return pathError.Err
	}
	return err
}

// eachSecret calls visit for every secret below value, with the field and its
// twin.
func eachSecret(path string, value reflect.Value, visit func(path string, value, file reflect.Value)) {
	switch value.Kind() {
	case reflect.Pointer:
		if !value.IsNil() {
			eachSecret(path, value.Elem(), visit)
		}
	case reflect.Map:
		for _, key := range sortedKeys(value) {
			eachSecret(join(path, key.String()), value.MapIndex(key), visit)
		}
	case reflect.Slice:
		for i := range value.Len() {
			eachSecret(path+"["+strconv.Itoa(i)+"]", value.Index(i), visit)
		}
	case reflect.Struct:
		fields := map[string]reflect.Value{}
		for i := range value.NumField() {
			if name := keyOf(value.Type().Field(i)); name != "" {
				fields[name] = value.Field(i)
			}
		}
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			if file, ok := fields[name+twinSuffix]; ok {
				visit(join(path, name), fields[name], file)
				continue
			}
			eachSecret(join(path, name), fields[name], visit)
		}
	}
}

func sortedKeys(value reflect.Value) []reflect.Value {
	keys := value.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
	return keys
}

func lastKey(path string) string { return path[strings.LastIndexByte(path, '.')+1:] }
