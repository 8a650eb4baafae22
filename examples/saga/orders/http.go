package main

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/outboxrelay/relay/examples/saga/events"
)

// serve adds the orders:
//
//	PUT /orders/{id}   places an order, once however often it is asked
//	GET /orders/{id}   shows what became of it
func serve(mux *http.ServeMux, pool *pgxpool.Pool) {
	mux.HandleFunc("PUT /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		order := events.OrderPlaced{}
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<16)).Decode(&order); err != nil {
			http.Error(w, "the body is no order: "+err.Error(), http.StatusBadRequest)
			return
		}
		order.OrderID = r.PathValue("id")
		if order.Customer == "" || order.Item == "" || order.TotalCents <= 0 || order.Quantity <= 0 {
			http.Error(w, "customer, item, total_cents and quantity are required, and the numbers positive", http.StatusBadRequest)
			return
		}
		err := pgx.BeginFunc(r.Context(), pool, func(tx pgx.Tx) error { return Place(r.Context(), tx, order) })
		if err != nil {
			fail(w, "place an order", err)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	})

	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		var order struct {
			ID      string `json:"id"`
			Status  string `json:"status"`
			Payment string `json:"payment"`
			Stock   string `json:"stock"`
		}
		err := pool.QueryRow(r.Context(), `SELECT id, status, payment, stock FROM orders WHERE id = $1`, r.PathValue("id")).
			Scan(&order.ID, &order.Status, &order.Payment, &order.Stock)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			http.NotFound(w, r)
		case err != nil:
			fail(w, "look up an order", err)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(order) // the client has gone
		}
	})
}

func fail(w http.ResponseWriter, what string, err error) {
	slog.Error(what, "error", err)
	http.Error(w, "try again", http.StatusServiceUnavailable)
}
