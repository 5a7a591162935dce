// Renders Go templates with the values, functions and types that Ollama (0.30 and later) hands to a model's template.
//
// usage: harmonytemplate TEMPLATE DATE [--allocated] < requests.jsonl > texts.jsonl
//
// A request is the body of /api/chat: messages, tools, think. Each output line is {"text": ...} or {"error": ...};
// with --allocated, the bytes that rendering allocated stand beside the text.
// Standard library only.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/template"
)

type typeNames []string // "string" or ["string", "null"]

func (t *typeNames) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*t = typeNames{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(t))
}

type property struct {
	AnyOf       []property
	Type        typeNames
	Items       any
	Description string
	Enum        []any
	Properties  *nested
}

// nested properties are not a map for templates; its method gives one.
type nested struct{ byName map[string]property }

func (n *nested) UnmarshalJSON(data []byte) error { return json.Unmarshal(data, &n.byName) }
func (n *nested) ToMap() map[string]property      { return n.byName }

type tool struct {
	Type     string
	Items    any
	Function struct {
		Name        string
		Description string
		Parameters  struct {
			Type       string
			Items      any
			Required   []string
			Properties map[string]property
		}
	}
}

type arguments map[string]any

func (a arguments) String() string { return marshal(map[string]any(a)) }

type toolCall struct {
	ID       string
	Function struct {
		Index     int
		Name      string
		Arguments arguments
	}
}

type message struct {
	Role       string
	Content    string
	Thinking   string
	ToolCalls  []toolCall `json:"tool_calls"`
	ToolName   string     `json:"tool_name"`
	ToolCallID string     `json:"tool_call_id"`
}

type request struct {
	Messages []message
	Tools    []tool
	Think    any
	Raw      map[string]any // if there: what the template sees, as it is
}

func marshal(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// renamed is how Ollama's harmony parser lists a tool before the template runs; the built-in ones keep their names.
func renamed(name string) string {
	switch name {
	case "python", "browser.search", "browser.open", "browser.find":
		return name
	}
	return strings.NewReplacer(" ", "_", "-", "_", ".", "_").Replace(name)
}

// values merges neighbours of one role, except tool results, and collects the system text.
func values(r request) map[string]any {
	if r.Raw != nil {
		return r.Raw
	}
	var system []string
	var merged []*message
	for i := range r.Messages {
		m := &r.Messages[i]
		if m.Role == "system" {
			system = append(system, m.Content)
		}
		if n := len(merged); n > 0 && merged[n-1].Role == m.Role && m.Role != "tool" {
			merged[n-1].Content += "\n\n" + m.Content
		} else {
			merged = append(merged, m)
		}
	}
	for i := range r.Tools {
		r.Tools[i].Function.Name = renamed(r.Tools[i].Function.Name)
	}
	level, isLevel := r.Think.(string)
	on, isBool := r.Think.(bool)
	if isBool && on {
		level = "medium"
	}
	return map[string]any{
		"System": strings.Join(system, "\n\n"), "Messages": merged, "Tools": r.Tools, "Response": "",
		"Think": isLevel || on, "ThinkLevel": level, "IsThinkSet": r.Think != nil,
	}
}

func main() {
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	functions := template.FuncMap{"json": marshal, "currentDate": func(...string) string { return os.Args[2] }}
	parsed, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(string(text))
	if err != nil {
		fmt.Println(marshal(map[string]string{"error": err.Error()}))
		return
	}
	in, out := bufio.NewScanner(os.Stdin), bufio.NewWriter(os.Stdout)
	defer out.Flush()
	in.Buffer(nil, 1<<26)
	for in.Scan() {
		var r request
		var b strings.Builder
		var before, after runtime.MemStats
		err := json.Unmarshal(in.Bytes(), &r)
		if err == nil {
			runtime.ReadMemStats(&before)
			err = parsed.Execute(&b, values(r))
			runtime.ReadMemStats(&after)
		}
		if err != nil {
			fmt.Fprintln(out, marshal(map[string]string{"error": err.Error()}))
		} else {
			line := map[string]string{"text": b.String()}
			if len(os.Args) > 3 {
				line["allocated"] = strconv.FormatUint(after.TotalAlloc-before.TotalAlloc, 10)
			}
			fmt.Fprintln(out, marshal(line))
		}
	}
}
