package servers

// Canary is the password that the tests give to whatever has one. It is so
// unlike anything else that finding it in an output means that a secret leaked.
const Canary = "CaNaRy7f3a9c"
