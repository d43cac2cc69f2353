"""From a converted network to one that is put to work: made quick, written in other forms, timed, and reported on."""
