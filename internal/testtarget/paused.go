package testtarget

import (
	"encoding/json"
	"fmt"
)

// Paused is what hotpatch says of the one pause of an apply or a revert.
type Paused struct {
	Microseconds float64 `json:"pause_us"`
	Threads      int     `json:"threads"` // that were stopped
}

// PauseOf finds it in the answer of such a command, called with --json, for one patch.
func PauseOf(answer string) (Paused, error) {
	var a struct {
		Result struct {
			Paused
			Patches []Paused `json:"patches"`
		} `json:"result"`
	}
	if err := json.Unmarshal([]byte(answer), &a); err != nil {
		return Paused{}, fmt.Errorf("the answer of hotpatch: %w", err)
	}
	if len(a.Result.Patches) == 1 {
		return a.Result.Patches[0], nil
	}
	return a.Result.Paused, nil
}
