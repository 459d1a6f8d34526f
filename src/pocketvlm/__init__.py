"""pocketvlm: run, serve, fine-tune and measure the small vision-language model MiniCPM-V 4.6 on one machine."""
