package pattern

import (
	"errors"
	"fmt"
)

// longestKafkaTopic is Kafka's own bound: the topic names a directory.
const longestKafkaTopic = 249

// ValidKafkaTopic returns why Kafka refuses the name, in words that follow it.
func ValidKafkaTopic(name string) error {
	switch name {
	case "":
		return errors.New("is empty")
	case ".", "..":
		return errors.New("is not a Kafka topic's name")
	}
	return ValidKafkaText(name)
}

// ValidKafkaText is ValidKafkaTopic for a part of a name.
func ValidKafkaText(text string) error {
	if len(text) > longestKafkaTopic {
		return fmt.Errorf("is longer than the %d bytes that Kafka allows", longestKafkaTopic)
	}
	for i := range len(text) {
		c := text[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '.', c == '_', c == '-':
		default:
			return errors.New("has a character that Kafka does not allow (letters, digits, '.', '_' and '-' are)")
		}
	}
	return nil
}
