// Command payments is an example: the payment service of the saga. It takes the
// money for orders that were placed, and gives it back for orders that were
// cancelled. payments.go is the part to copy from.
package main

import "github.com/outboxrelay/relay/examples/saga/internal/service"

func main() {
	service.Service{
		Name:    "payments",
		Schema:  schema,
		Topics:  []string{"orders"},
		Handler: newRouter().Handler(),
	}.Main()
}
