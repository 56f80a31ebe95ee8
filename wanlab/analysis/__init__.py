"""Numbers in, results out: numpy arrays from run files to frozen results, reports and figures. No torch, no printing."""
