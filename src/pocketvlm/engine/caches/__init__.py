"""What is kept between steps and requests: slots, prefixes, features of pictures."""
