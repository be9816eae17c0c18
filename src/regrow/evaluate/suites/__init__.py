"""Where evaluation items come from: one module a source."""
