// Command orders is an example: the order service of the saga. It takes orders
// by HTTP, and confirms or cancels them by what the payment and the stock
// service say. orders.go is the part to copy from.
package main

import (
	"github.com/outboxrelay/relay/examples/saga/internal/service"
)

func main() {
	service.Service{
		Name:    "orders",
		Schema:  schema,
		Topics:  []string{"payments", "stock"},
		Handler: newRouter().Handler(),
		Serve:   serve,
	}.Main()
}
