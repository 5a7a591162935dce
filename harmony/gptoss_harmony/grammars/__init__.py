"""What the model may write, as GBNF and as structural tags, for engines that constrain decoding."""
