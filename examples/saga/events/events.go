// Package events has what the services tell each other, as the JSON of their
// messages. A message's type is the name of its Go type here, its key the
// order's id, so that the events of an order arrive in order.
package events

// OrderPlaced of the order service asks for the money and the goods.
type OrderPlaced struct {
	OrderID    string `json:"order_id"`
	Customer   string `json:"customer"`
	TotalCents int64  `json:"total_cents"`
	Item       string `json:"item"`
	Quantity   int64  `json:"quantity"`
}

// OrderConfirmed says that an order is paid and its goods are reserved.
type OrderConfirmed struct {
	OrderID string `json:"order_id"`
}

// OrderCancelled has the others undo what they did for the order.
type OrderCancelled struct {
	OrderID string `json:"order_id"`
	Reason  string `json:"reason"`
}

// PaymentTaken of the payment service says that an order is paid.
type PaymentTaken struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

// PaymentRefused says that an order cannot be paid, and that no money moved.
type PaymentRefused struct {
	OrderID string `json:"order_id"`
	Reason  string `json:"reason"`
}

// PaymentRefunded says that the customer has the money back.
type PaymentRefunded struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

// StockReserved of the stock service says that an order's goods are put by.
type StockReserved struct {
	OrderID  string `json:"order_id"`
	Item     string `json:"item"`
	Quantity int64  `json:"quantity"`
}

// StockRefused says that there are not enough goods, and that none are put by.
type StockRefused struct {
	OrderID string `json:"order_id"`
	Reason  string `json:"reason"`
}

// StockReleased says that an order's goods can be sold to others again.
type StockReleased struct {
	OrderID  string `json:"order_id"`
	Item     string `json:"item"`
	Quantity int64  `json:"quantity"`
}
