// Holds PDFs against veraPDF's rules for PDF/UA-1; tools/check_pdf.py runs it and finds the jar.
//
// The one idea: the profile is read here with what Java itself brings, since the jar lacks the JAXB that veraPDF would read it with.

import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Date;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import javax.xml.parsers.DocumentBuilderFactory;
import org.verapdf.gf.foundry.VeraGreenfieldFoundryProvider;
import org.verapdf.pdfa.Foundries;
import org.verapdf.pdfa.PDFAParser;
import org.verapdf.pdfa.PDFAValidator;
import org.verapdf.pdfa.flavours.PDFAFlavour;
import org.verapdf.pdfa.results.TestAssertion;
import org.verapdf.pdfa.results.ValidationResult;
import org.verapdf.pdfa.validation.profiles.ErrorArgument;
import org.verapdf.pdfa.validation.profiles.ErrorArgumentImpl;
import org.verapdf.pdfa.validation.profiles.Profiles;
import org.verapdf.pdfa.validation.profiles.Rule;
import org.verapdf.pdfa.validation.profiles.RuleId;
import org.verapdf.pdfa.validation.profiles.ValidationProfile;
import org.verapdf.pdfa.validation.profiles.Variable;
import org.verapdf.pdfa.validation.validators.ValidatorFactory;
import org.w3c.dom.Element;
import org.w3c.dom.NodeList;

public class PdfUa {
    private static final PDFAFlavour FLAVOUR = PDFAFlavour.PDFUA_1;
    private static final String PROFILE = "org/verapdf/pdfa/validation/PDFUA-1.xml";
    private static final int ALL_FAILURES = -1;
    private static final int BROKEN = 9;  // Java itself says 1 where a program breaks off

    public static void main(String[] names) throws Exception {
        VeraGreenfieldFoundryProvider.initialise();
        ValidationProfile profile = profile();
        boolean sound = true;
        for (String name : names) {
            try (InputStream in = Files.newInputStream(Path.of(name));
                    PDFAParser parser = Foundries.defaultInstance().createParser(in, FLAVOUR);
                    PDFAValidator validator = ValidatorFactory.createValidator(profile, ALL_FAILURES, false, true, false)) {
                ValidationResult result = validator.validate(parser);
                tell(name, result, profile.getRules().size());
                sound &= result.isCompliant();
            }
        }
        System.exit(sound ? 0 : BROKEN);
    }

    private static void tell(String name, ValidationResult result, int rules) {
        String verdict = result.isCompliant() ? "conforms" : "does not conform";
        System.out.printf("%s: %s to PDF/UA-1 (%d rules, %d checks)%n", name, verdict, rules, result.getTotalAssertions());
        Map<String, Integer> failed = new TreeMap<>();
        for (TestAssertion one : result.getTestAssertions()) {
            RuleId rule = one.getRuleId();
            failed.merge(rule.getClause() + "-" + rule.getTestNumber() + " " + one.getMessage(), 1, Integer::sum);
        }
        failed.forEach((what, times) -> System.out.printf("  %d x %s%n", times, what));
    }

    private static ValidationProfile profile() throws Exception {
        InputStream in = PdfUa.class.getClassLoader().getResourceAsStream(PROFILE);
        Element root = DocumentBuilderFactory.newInstance().newDocumentBuilder().parse(in).getDocumentElement();
        Set<Rule> rules = new LinkedHashSet<>();
        all(root, "rule").forEach(rule -> rules.add(rule(rule)));
        Set<Variable> variables = new LinkedHashSet<>();
        for (Element one : all(root, "variable")) {
            String start = text(one, "defaultValue"), value = text(one, "value");
            variables.add(Profiles.variableFromValues(one.getAttribute("name"), one.getAttribute("object"), start, value));
        }
        var details = Profiles.profileDetailsFromValues("PDF/UA-1", "", "veraPDF", new Date(0));
        return Profiles.profileFromValues(FLAVOUR, details, "", rules, variables);
    }

    private static Rule rule(Element rule) {
        Element id = all(rule, "id").get(0);
        int number = Integer.parseInt(id.getAttribute("testNumber"));
        RuleId name = Profiles.ruleIdFromValues(PDFAFlavour.Specification.ISO_14289_1, id.getAttribute("clause"), number);
        List<ErrorArgument> arguments = new ArrayList<>();
        all(rule, "argument").forEach(one -> arguments.add(ErrorArgumentImpl.fromValues(one.getTextContent(), null, null)));
        return Profiles.ruleFromValues(
                name, rule.getAttribute("object"), Boolean.parseBoolean(rule.getAttribute("deferred")), rule.getAttribute("tags"),
                text(rule, "description"), text(rule, "test"), Profiles.errorFromValues(text(rule, "message"), arguments), List.of());
    }

    private static List<Element> all(Element node, String name) {
        NodeList nodes = node.getElementsByTagName(name);
        List<Element> found = new ArrayList<>();
        for (int i = 0; i < nodes.getLength(); i++) {
            found.add((Element) nodes.item(i));
        }
        return found;
    }

    private static String text(Element node, String name) {
        return all(node, name).get(0).getTextContent();
    }
}
