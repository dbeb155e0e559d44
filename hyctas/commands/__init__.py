"""Do what the commands ask for: each module here works for the one of its name in `hyctas.cli`, or for several."""
