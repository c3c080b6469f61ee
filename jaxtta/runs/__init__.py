"""How a run is done, whatever it does: its folder, its cases, its files, its loops."""
