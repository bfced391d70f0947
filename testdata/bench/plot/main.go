// Command plot draws what scripts/bench has measured:
//
//	plot TITLE DATA.csv PICTURE.svg
//
// The first line of the data has the names of the columns, the others numbers. The
// first column goes to the right, the others are lines.
package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: plot TITLE DATA.csv PICTURE.svg")
		os.Exit(2)
	}
	if err := draw(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "plot:", err)
		os.Exit(1)
	}
}

func draw(title, data, picture string) error {
	f, err := os.Open(data)
	if err != nil {
		return err
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return err
	}
	if len(rows) < 2 {
		return fmt.Errorf("%s has no numbers", data)
	}
	p := plot.New()
	p.Title.Text = title
	p.X.Label.Text = rows[0][0]
	p.X.Min, p.Y.Min = 0, 0
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	for column := 1; column < len(rows[0]); column++ {
		var line plotter.XYs
		for _, row := range rows[1:] {
			x, errX := strconv.ParseFloat(row[0], 64)
			y, errY := strconv.ParseFloat(row[column], 64)
			if errX != nil || errY != nil {
				return fmt.Errorf("%s: %q are not numbers", data, row)
			}
			line = append(line, plotter.XY{X: x, Y: y})
		}
		l, points, err := plotter.NewLinePoints(line)
		if err != nil {
			return err
		}
		l.Color, points.Color = plotutil.Color(column-1), plotutil.Color(column-1)
		points.Shape = plotutil.Shape(column - 1)
		p.Add(l, points)
		p.Legend.Add(rows[0][column], l, points)
	}
	return p.Save(14*vg.Centimeter, 9*vg.Centimeter, picture)
}
