"""How training runs plans on the pool: `served_pool`, behind `call_cache`, many at a time (`progress`)."""
