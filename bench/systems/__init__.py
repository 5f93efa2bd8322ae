"""How each system is started, moved and watched. All give the same `Trial`, so that one function can compare them."""
