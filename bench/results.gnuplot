# Draws the medians that bench/compare finds for ssed and its peers, as SVG:
#   gnuplot -e "data = 'FILE'" bench/results.gnuplot >bench/results.svg
# FILE has a line for each server: its name, the nanoseconds of CPU for a
# delivered event, and the latency's p50 and p99 in milliseconds.

set encoding utf8
set terminal svg size 560,400 fixed font "sans-serif,14" \
    background "#ffffff" name "results"

server(name) = name eq "floor" ? "the floor" : \
    name eq "nginx" ? "nginx with nchan" : \
    name eq "express" ? "Node with Express" : name
colour(name) = name eq "ssed" ? 0x0969da : 0xafb8c1
row(x) = -column(0)
above(x) = row(0) + 0.3
below(x) = row(0) - 0.3
number(x) = x < 99.5 ? gprintf("%.2g", x) : gprintf("%.0f", x)

stats data using 2:4 name "greatest" nooutput
stats data using 3 name "least" nooutput

set key off
set border 0
set style fill solid 1 noborder
set style textbox opaque noborder margins 0,0
set tics scale 0 textcolor rgb "#57606a"
set grid xtics linetype 1 linewidth 1 linecolor rgb "#d8dee4"
set yrange [-3.5:0.5]
set lmargin at screen 0.27
set rmargin at screen 0.97
set multiplot

set label 1 "CPU per delivered event, µs" at graph 0,1.14 \
    textcolor rgb "#1f2328" font "sans-serif,15"
set label 2 "2,000 subscribers, 20 events a second. The floor does nothing but \
send." at screen 0.02,0.04 textcolor rgb "#57606a" font "sans-serif,13"
set tmargin at screen 0.9
set bmargin at screen 0.62
set xrange [0:greatest_max_x / 1000 * 1.15]
plot data using (0):(row(0)):(0):($2 / 1000):(below(0)):(above(0)): \
    (colour(strcol(1))):ytic(server(strcol(1))) \
    with boxxyerror linecolor rgb variable, \
    data using ($2 / 1000):(row(0)):(number($2 / 1000)) with labels \
    boxed left offset 0.7,0 textcolor rgb "#1f2328"

set label 1 "latency from p50 to p99, ms (each step is tenfold)"
unset label 2
set tmargin at screen 0.44
set bmargin at screen 0.16
set logscale x
set xrange [10 ** floor(log10(least_min)):greatest_max_y * 12]
set xtics 10
plot data using 3:(row(0)):3:4:(below(0)):(above(0)): \
    (colour(strcol(1))):ytic(server(strcol(1))) \
    with boxxyerror linecolor rgb variable, \
    data using 4:(row(0)):(number($3)." to ".number($4)) with labels \
    boxed left offset 0.7,0 textcolor rgb "#1f2328"
unset multiplot
