// Command stock is an example: the stock service of the saga. It reserves goods
// for orders that were placed, and releases those of orders that were
// cancelled. stock.go is the part to copy from.
package main

import "github.com/outboxrelay/relay/examples/saga/internal/service"

func main() {
	service.Service{
		Name:    "stock",
		Schema:  schema,
		Topics:  []string{"orders"},
		Handler: newRouter().Handler(),
	}.Main()
}
