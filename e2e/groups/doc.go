// Package groups tests consumer groups of the inbox on Kafkas with settings of
// their own.
package groups
