"""Other people's engines: Ray Data for many rows, Ray Serve and Triton for requests. Each is an extra."""
