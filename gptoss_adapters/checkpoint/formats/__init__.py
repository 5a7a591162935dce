"""The file formats that checkpoints come in, each read strictly."""
